//! Frames and what is almost a frame.
