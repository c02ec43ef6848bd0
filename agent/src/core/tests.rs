mod dead_letters;
mod deletion;
mod folds;
mod leftovers;
mod paths;
mod properties;
mod units;
mod world;
