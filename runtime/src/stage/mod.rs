//! One replica of a stage: the thread that computes and the loop around it.
