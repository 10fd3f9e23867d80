"""One file a method, top to bottom: config dataclass, Trainer subclass, main(). Uses all other rooms."""

from data.library_noise import leave_out_noise

leave_out_noise()
