//! iceoryx2: publish-subscribe of byte slices; loan, write in place, send; the receiver polls.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::update_connections::UpdateConnections;
use iceoryx2::prelude::*;
use sandpipe_link::program::{Kind, Side, Task, run};
use sandpipe_link::{Link, Seen, read};

type Ipc = ipc::Service;

/// How long the other side may take to appear or to answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Messages that a subscriber's queue holds, small and large ones.
const DEPTH: usize = 256;
const DEPTH_LARGE: usize = 8;

struct Ends {
    publisher: Publisher<Ipc, [u8], ()>,
    subscriber: Subscriber<Ipc, [u8], ()>,
    touched: usize,
    _node: Node<Ipc>,
}

fn main() -> ExitCode {
    set_log_level(LogLevel::Fatal);
    run(open)
}

fn said(error: impl Display) -> String {
    format!("iceoryx2: {error}")
}

fn open(task: &Task, side: &Side) -> Result<Ends, String> {
    let node = NodeBuilder::new().create::<Ipc>().map_err(said)?;
    let stream = task.kind == Kind::OneWay;
    let depth = match (stream, task.len) {
        (false, _) => 1,
        (true, 0..=4096) => DEPTH,
        (true, _) => DEPTH_LARGE,
    };
    let service = |direction: &str| {
        let name = format!("sandpipe-bench/{}/{direction}", side.tag);
        let name: ServiceName = name.as_str().try_into().map_err(said)?;
        node.service_builder(&name)
            .publish_subscribe::<[u8]>()
            .payload_alignment(Alignment::new(64).ok_or("no alignment of 64")?)
            .max_publishers(1)
            .max_subscribers(1)
            .history_size(0)
            .subscriber_max_buffer_size(depth)
            .enable_safe_overflow(!stream)
            .open_or_create()
            .map_err(said)
    };
    let (out, back) = match side.second {
        false => (service("there")?, service("back")?),
        true => (service("back")?, service("there")?),
    };
    let publisher = out
        .publisher_builder()
        .initial_max_slice_len(task.len)
        .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
        .create()
        .map_err(said)?;
    let subscriber = back.subscriber_builder().create().map_err(said)?;
    let start = Instant::now();
    while out.dynamic_config().number_of_subscribers() == 0
        || back.dynamic_config().number_of_publishers() == 0
    {
        if start.elapsed() > SILENCE_MAX {
            return Err("iceoryx2: the other process does not appear".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // The other side may have seen us before its own ports were connected.
    std::thread::sleep(Duration::from_millis(20));
    publisher.update_connections().map_err(said)?;
    subscriber.update_connections().map_err(said)?;
    Ok(Ends {
        publisher,
        subscriber,
        touched: task.touched,
        _node: node,
    })
}

impl Link for Ends {
    type Error = String;

    fn send(&mut self, message: &[u8]) -> Result<(), String> {
        while !self.try_send(message)? {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Seen, String> {
        let mut looks = 0_u32;
        let mut start = None;
        loop {
            if let Some(sample) = self.subscriber.receive().map_err(said)? {
                return Ok(read(&sample.payload()[..self.touched]));
            }
            looks = looks.wrapping_add(1);
            if looks & 0xf_ffff == 0
                && start.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX
            {
                return Err("iceoryx2: silent".to_owned());
            }
        }
    }

    fn try_send(&mut self, message: &[u8]) -> Result<bool, String> {
        let Ok(mut sample) = self.publisher.loan_slice_uninit(message.len()) else {
            return Ok(false);
        };
        for (to, from) in sample
            .payload_mut()
            .iter_mut()
            .zip(&message[..self.touched])
        {
            to.write(*from);
        }
        // SAFETY: bytes have no invalid values; a loan is memory of an initialised segment, and
        // what is not written here keeps the bytes of an earlier message.
        let sample = unsafe { sample.assume_init() };
        sample.send().map_err(said)?;
        Ok(true)
    }

    fn out_of_order(expected: u64, seen: Seen) -> String {
        format!(
            "iceoryx2: message {} came in place of {expected}",
            seen.first
        )
    }
}
