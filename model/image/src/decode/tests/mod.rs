//! Every kind of file that is read, and every way in which one can be wrong.

mod faults;
mod kinds;
mod samples;
