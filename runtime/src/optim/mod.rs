//! How weights change.
