mod dead_letters;
mod folds;
mod paths;
mod properties;
mod units;
mod world;
