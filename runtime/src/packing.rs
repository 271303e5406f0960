//! Which packed format and which rounding key a boundary tensor has.
