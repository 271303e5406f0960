//! What is done to the residual stream at a cut.
