mod dead_letters;
mod folds;
mod properties;
mod units;
mod world;
