//! A real server and real clients on the loopback interface.
