"""One file a method, top to bottom: config dataclass, Trainer subclass, main(). Uses all other rooms."""
