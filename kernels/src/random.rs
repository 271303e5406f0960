//! Counter-based random numbers, the same on every device.
