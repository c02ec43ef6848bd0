//! The values of the paper, from data/sand_figures.csv (its header names the source).

use std::sync::OnceLock;

use crate::error::BenchError;

const FILE: &str = "bench-harness/data/sand_figures.csv";
const TEXT: &str = include_str!("../data/sand_figures.csv");

/// One value of the paper.
#[derive(Clone, Debug, PartialEq)]
pub struct PaperValue {
    /// The paper's figure: `5b`, `7`, or `text`.
    pub figure: String,
    /// Its series.
    pub series: String,
    /// Its place on the x axis.
    pub x: String,
    /// Unit of the value as printed there.
    pub unit: String,
    /// The mean; where the paper draws several, they are not a number and left out.
    pub mean: Option<f64>,
    /// 95 % confidence interval, where it is drawn.
    pub ci95: Option<[f64; 2]>,
}

/// All values of the paper.
///
/// # Panics
/// Never: the embedded file is parsed by a test.
#[must_use]
pub fn values() -> &'static [PaperValue] {
    static VALUES: OnceLock<Vec<PaperValue>> = OnceLock::new();
    VALUES.get_or_init(|| parse(FILE, TEXT).expect("the embedded file is checked by a test"))
}

/// The mean of one value in ns; `None` if the paper has no such value, or not as a time.
#[must_use]
pub fn mean_ns(figure: &str, series: &str, x: &str) -> Option<f64> {
    let value = values()
        .iter()
        .find(|v| v.figure == figure && v.series == series && v.x == x)?;
    match value.unit.as_str() {
        "ms" => value.mean.map(|ms| ms * 1e6),
        _ => None,
    }
}

/// Reads the CSV: comment lines begin with `#`, the first other line is the header.
///
/// # Errors
/// [`BenchError::Csv`] naming the line.
pub fn parse(file: &str, text: &str) -> Result<Vec<PaperValue>, BenchError> {
    const HEADER: &str = "figure,series,x,unit,mean,ci95_lo,ci95_hi,note";
    let mut lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with('#'));
    let wrong = |index: usize, detail: String| BenchError::Csv {
        file: file.to_owned(),
        line: index + 1,
        detail,
    };
    match lines.next() {
        Some((_, HEADER)) => {}
        Some((index, other)) => return Err(wrong(index, format!("not the header: {other}"))),
        None => return Err(wrong(0, "the file is empty".into())),
    }
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            let fields: Vec<&str> = line.split(',').collect();
            let [figure, series, x, unit, mean, low, high, _note] = fields[..] else {
                return Err(wrong(index, format!("{} fields and not 8", fields.len())));
            };
            let ends = [low, high].map(str::parse::<f64>);
            let ci95 = match ends {
                [Ok(low), Ok(high)] => Some([low, high]),
                _ if low.is_empty() && high.is_empty() => None,
                _ => {
                    return Err(wrong(
                        index,
                        format!("\"{low}\", \"{high}\" is no interval"),
                    ));
                }
            };
            if mean.is_empty() {
                return Err(wrong(index, "no mean".into()));
            }
            Ok(PaperValue {
                figure: figure.to_owned(),
                series: series.to_owned(),
                x: x.to_owned(),
                unit: unit.to_owned(),
                mean: mean.parse().ok(),
                ci95,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_own_file_is_read_and_has_its_known_values() {
        assert!(parse(FILE, TEXT).unwrap().len() >= 30);
        assert_eq!(mean_ns("5b", "Python", "Local bus"), Some(787_000.0));
        assert_eq!(mean_ns("5c", "warm", "SAND"), Some(2_410_000.0));
        assert_eq!(mean_ns("7", "total", "SAND"), Some(571e6));
        assert_eq!(mean_ns("5b", "Rust", "Local bus"), None);
        let kafka = values()
            .iter()
            .find(|v| v.figure == "5b" && v.series == "Java")
            .unwrap();
        assert_eq!(kafka.ci95, Some([1.222, 1.346]));
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number() {
        let header = "# source\nfigure,series,x,unit,mean,ci95_lo,ci95_hi,note\n";
        let short = format!("{header}5b,Java,Local bus,ms\n");
        assert_eq!(
            parse("f.csv", &short).unwrap_err().to_string(),
            "f.csv:3: 4 fields and not 8"
        );
        let half = format!("{header}5b,Java,Local bus,ms,1,2,,\n");
        assert!(
            parse("f.csv", &half)
                .unwrap_err()
                .to_string()
                .starts_with("f.csv:3:")
        );
        assert!(
            parse("f.csv", "a,b\n")
                .unwrap_err()
                .to_string()
                .starts_with("f.csv:1:")
        );
    }
}
