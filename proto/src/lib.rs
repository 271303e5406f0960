//! The wire contract of swarmline.
