//! Two endpoints on the loopback interface.
