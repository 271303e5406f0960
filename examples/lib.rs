//! The examples are the `[[example]]` targets of this package; see README.md beside this file.
