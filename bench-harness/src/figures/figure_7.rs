//! SAND's figure 7: an image pipeline of four functions, and what it costs beyond them.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{FigureKind, Parts, Setting};
use crate::app::App;
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::http::Connection;
use crate::paper;
use crate::python::Python;
use crate::report::Unit;
use crate::rounds::Plan;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "7",
    title: "Image pipeline: total, handlers, and what lies between",
    source: "SAND, figure 7",
    measure,
};

const SUBSTITUTIONS: [&str; 4] = [
    "four Python grains on one photograph; detection by OpenCV's cascade for SqueezeNet on MXNet, \
     metadata and thumbnail by Python and OpenCV for ImageMagick",
    "overhead = request to answer minus the time inside the four handlers; in SAND 20.8 ms. The \
     requests are traced; the wait for the disk that only a traced answer has is taken off",
    "the floor is the sum of four bare forks, each of an interpreter with the grain's module \
     loaded; its children run the handlers in turn, so that the forks find the caches as the \
     pipeline's do",
    "embedded global bus; one request at a time over a kept-alive connection",
];

const GRAINS: [&str; 4] = ["metadata", "check", "detect", "thumbnail"];
const TRACE_HEADER: &str = "sandpipe-trace";
/// Between two requests: forked instances are replaced meanwhile.
const PAUSE: Duration = Duration::from_millis(40);
/// Requests to a fresh application that are not counted.
const COLD: usize = 3;

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let python = Python::with(&setting.root, "sandpipe")?;
    let images = setting.root.join("examples/image-pipeline");
    let images = images
        .canonicalize()
        .map_err(|e| BenchError::os("examples/image-pipeline", e))?;
    let photo =
        std::fs::read(images.join("photo.jpg")).map_err(|e| BenchError::os("read photo.jpg", e))?;
    setting.progress.doing("starting the pipelines");
    let ways = [
        ("forked on demand", "fork", 0),
        ("forked ahead", "fork", 2),
        ("pool", "pool", 0),
    ];
    let mut pipelines = Vec::new();
    for (name, mode, spares) in ways {
        pipelines.push((
            name,
            Pipeline::start(&images, &python, mode, spares, &photo)?,
        ));
    }
    let mut plan = Plan::default();
    let requests = setting.profile.samples(8);
    let floor = plan.case(
        "floor: four bare forks",
        "Python",
        setting.profile.samples(10),
        |n| bare_forks(&images, &python, n),
    );
    let mut overheads = Vec::new();
    for (name, pipeline) in &pipelines {
        let [total, compute, overhead] = ["total", "handlers", "overhead"].map(|part| {
            plan.case(&format!("{part}, {name}"), "Python", requests, move |n| {
                pipeline.take(part, n)
            })
        });
        overheads.push((overhead, [total, compute, overhead]));
    }
    let [(demand, on_demand), (ahead, forked_ahead), (pool, pooled)] = overheads[..] else {
        return Ok(parts);
    };
    plan.block(&[&[floor], &on_demand[..]].concat());
    plan.block(&forked_ahead);
    plan.block(&pooled);
    plan.ratio("7.overhead_over_floor.fork", demand, floor);
    plan.value("7.overhead_ms.ahead", ahead, Unit::Ms.ns());
    plan.value("7.overhead_ms.pool", pool, Unit::Ms.ns());
    parts.measure(setting, plan, Unit::Ms, paper_ns)?;
    Ok(parts)
}

/// SAND's total and compute time; its overhead is their difference, as the paper states it.
fn paper_ns(case: &str, _: &str) -> Option<f64> {
    let total = paper::mean_ns("7", "total", "SAND");
    let compute = paper::mean_ns("7", "compute", "SAND");
    match case.split(',').next()? {
        "total" => total,
        "handlers" => compute,
        "overhead" => Some(total? - compute?),
        _ => None,
    }
}

/// The sums of one bare fork of each grain's interpreter, a photograph each.
fn bare_forks(images: &Path, python: &Python, count: usize) -> Result<Samples, BenchError> {
    let modules = GRAINS.map(|grain| images.join(format!("{grain}.py")).display().to_string());
    let photo = images.join("photo.jpg").display().to_string();
    let (count, pause) = (count.to_string(), PAUSE.as_millis().to_string());
    let arguments = ["--photo", &photo, "--count", &count, "--pause-ms", &pause];
    let modules = modules.iter().map(String::as_str);
    let arguments: Vec<&str> = arguments.into_iter().chain(modules).collect();
    python.latencies("pipeline_floor.py", &arguments)
}

/// One running pipeline.
struct Pipeline {
    connection: RefCell<Connection>,
    path: String,
    photo: Vec<u8>,
    /// What the last requests gave and no case has taken yet: total, handlers, overhead.
    waiting: RefCell<[Option<Samples>; 3]>,
    _app: App,
}

/// What the front door says of a traced request.
#[derive(Deserialize)]
struct Trace {
    hops: Vec<Hop>,
    known_ns: u64,
    answered_ns: u64,
}

#[derive(Deserialize)]
struct Hop {
    stamps: Stamps,
}

#[derive(Deserialize)]
struct Stamps {
    started_ns: u64,
    ended_ns: u64,
}

impl Pipeline {
    fn start(
        images: &Path,
        python: &Python,
        mode: &str,
        spares: u16,
        photo: &[u8],
    ) -> Result<Pipeline, BenchError> {
        let app = App::start(
            "bench-images",
            &app_toml(images, python.interpreter(), mode, spares),
        )?;
        let pipeline = Pipeline {
            connection: RefCell::new(Connection::open(&app.address)?),
            path: app.path.clone(),
            photo: photo.to_vec(),
            waiting: RefCell::default(),
            _app: app,
        };
        for _ in 0..COLD {
            pipeline.request()?;
        }
        Ok(pipeline)
    }

    /// The samples of one part of `count` requests. The three parts of a round are of the same
    /// requests: whichever is asked for first makes them.
    fn take(&self, part: &str, count: usize) -> Result<Samples, BenchError> {
        let place = match part {
            "total" => 0,
            "handlers" => 1,
            _ => 2,
        };
        if let Some(samples) = self.waiting.borrow_mut()[place].take() {
            return Ok(samples);
        }
        let mut fresh = [(); 3].map(|()| Samples::new());
        for _ in 0..count {
            std::thread::sleep(PAUSE);
            let [total, handlers] = self.request()?;
            let overhead = total.saturating_sub(handlers);
            for (samples, ns) in fresh.iter_mut().zip([total, handlers, overhead]) {
                samples.record(ns);
            }
        }
        let mut waiting = self.waiting.borrow_mut();
        *waiting = fresh.map(Some);
        Ok(waiting[place].take().expect("just put there"))
    }

    /// One photograph through the pipeline: ns from request to answer, and inside the handlers.
    fn request(&self) -> Result<[u64; 2], BenchError> {
        let wrong = |detail: String| BenchError::peer("the image pipeline", detail);
        let start = now_ns();
        let headers = [("content-type", "image/jpeg"), (TRACE_HEADER, "1")];
        let answer = self
            .connection
            .borrow_mut()
            .post(&self.path, &headers, &self.photo)?;
        let total = now_ns() - start;
        if answer.status != 200 {
            return Err(wrong(format!(
                "answered {}: {}",
                answer.status,
                answer.text()
            )));
        }
        let trace = answer
            .header(TRACE_HEADER)
            .ok_or_else(|| wrong("sent no trace".into()))?;
        let trace: Trace =
            serde_json::from_str(trace).map_err(|e| wrong(format!("sent no trace: {e}")))?;
        if trace.hops.len() != GRAINS.len() {
            return Err(wrong(format!("traced {} grains of 4", trace.hops.len())));
        }
        // A traced answer waits until it is durable, so that the trace is whole; others do not.
        let total = total.saturating_sub(trace.answered_ns.saturating_sub(trace.known_ns));
        let inside = |hop: &Hop| hop.stamps.ended_ns.saturating_sub(hop.stamps.started_ns);
        Ok([total, trace.hops.iter().map(inside).sum()])
    }
}

fn app_toml(images: &Path, interpreter: &Path, mode: &str, spares: u16) -> String {
    let mut text = format!(
        "name = \"bench-images\"\n[workflow]\nchain = {GRAINS:?}\n[limits]\nmax_payload_bytes = \
         16777216\n[sandbox]\nread = [{images:?}]\n"
    );
    for grain in GRAINS {
        let handler = format!("{}:handle", images.join(format!("{grain}.py")).display());
        text.push_str(&format!(
            "[[grain]]\nname = \"{grain}\"\nruntime = \"python\"\nhandler = {handler:?}\n\
             python = {interpreter:?}\nmode = \"{mode}\"\nconcurrency = 1\n"
        ));
        if mode == "fork" {
            text.push_str(&format!("spares = {spares}\n"));
        }
    }
    text
}
