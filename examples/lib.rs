//! Examples live in the `[[example]]` targets of this package; see README.md beside this file.
