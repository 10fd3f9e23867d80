"""Policies and scorers. Imports none of the other rooms."""

from data.library_noise import leave_out_noise

leave_out_noise()
