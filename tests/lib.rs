//! Tests of the workspace as a whole; the targets beside this file hold them.
