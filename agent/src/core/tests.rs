mod folds;
mod properties;
mod units;
mod world;
