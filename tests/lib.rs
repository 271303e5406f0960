//! Tests of the workspace as a whole, in the targets beside this file.
