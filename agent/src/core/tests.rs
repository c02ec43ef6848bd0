mod properties;
mod units;
mod world;
