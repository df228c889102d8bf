"""Judges of waveforms: each sees a batch and answers a number, or null with a reason, for every sample."""
