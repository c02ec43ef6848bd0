import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;

/**
 * Aeron's Java client as a peer: the arguments and the output of the programs of peers/link. The
 * first process starts the driver and a second copy of itself; each ends when its input does, so
 * none is left however the first one dies.
 */
final class Peer {
  /** Set for the second process and the driver: what the names of a run's files share. */
  private static final String TAG = "SANDPIPE_PEER_TAG";
  private static final String DRIVER = "driver";
  /** How long another process may take to end before it is killed. */
  private static final long END_MAX_S = 2;
  /** Fragments and time (ns) until the compiler has done its work; nothing of it counts. */
  private static final long WARM_FRAGMENTS = 40_000;
  private static final long WARM_NS = 400_000_000;
  /** A busy machine may not come so far; this is enough then. */
  private static final long WARM_NS_MAX = 3_000_000_000L;
  /** A sample of a stream is the time of so many messages. */
  private static final long PER_SAMPLE = 1000;
  /** Looks for room before the core is given to somebody else. */
  private static final int LOOKS = 64;

  private static volatile boolean stop;

  private Peer() {}

  public static void main(String[] words) {
    try {
      if (words.length == 1 && words[0].equals(DRIVER)) {
        Driver.run(dir(System.getenv(TAG)));
      }
      Task task = Task.parse(words);
      if (task == null) {
        System.err.println("usage: PROGRAM round-trip|one-way LEN SAMPLES TOGETHER TOUCHED WARM_UP"
            + " CPU OTHER_CPU");
        System.exit(2);
      }
      String tag = System.getenv(TAG);
      if (tag == null) {
        measure(task, words);
      } else {
        answer(task, tag);
      }
      // The client has threads of its own.
      System.exit(0);
    } catch (Exception e) {
      System.err.println("Aeron (Java): " + e);
      System.exit(1);
    }
  }

  private static Path dir(String tag) {
    return Path.of("/dev/shm/sandpipe-bench-aeron-java-" + tag);
  }

  /** Blocks until the other end of the standard input is closed. */
  static void awaitEndOfInput() {
    try {
      while (System.in.read() >= 0) {
        // Nothing is said there.
      }
    } catch (IOException e) {
      // An end, too.
    }
  }

  /** A second copy of this program; its input is this process's. */
  private static Process start(String tag, String... words) throws IOException {
    ProcessBuilder builder = new ProcessBuilder(System.getProperty("sandpipe.program"));
    builder.command().addAll(List.of(words));
    builder.environment().put(TAG, tag);
    builder.redirectOutput(ProcessBuilder.Redirect.DISCARD);
    return builder.redirectError(ProcessBuilder.Redirect.INHERIT).start();
  }

  private static void end(Process process) throws Exception {
    process.getOutputStream().close();
    if (!process.waitFor(END_MAX_S, TimeUnit.SECONDS)) {
      process.destroyForcibly().waitFor();
    }
  }

  /** Pins all threads of this process, those of the library and of the machine with them. */
  private static void pin(int cpu) throws Exception {
    String pid = Long.toString(ProcessHandle.current().pid());
    ProcessBuilder taskset =
        new ProcessBuilder("taskset", "-acp", Integer.toString(cpu), pid);
    taskset.redirectOutput(ProcessBuilder.Redirect.DISCARD);
    // An unusable CPU shows in the placement.
    taskset.start().waitFor();
  }

  /** The first process: measures and prints. */
  private static void measure(Task task, String[] words) throws Exception {
    String tag = Long.toString(ProcessHandle.current().pid());
    Process driver = start(tag, DRIVER);
    Process second = start(tag, words);
    try {
      Ends ends = Ends.open(task, dir(tag), false);
      pin(task.cpu());
      long[] samples = new long[task.samples()];
      if (task.oneWay()) {
        consume(ends, task, samples);
      } else {
        ping(ends, task, samples);
      }
      StringBuilder lines = new StringBuilder();
      for (long ns : samples) {
        lines.append(ns).append('\n');
      }
      System.out.print(lines);
      System.out.flush();
    } finally {
      end(second);
      end(driver);
    }
  }

  /** The second process. */
  private static void answer(Task task, String tag) throws Exception {
    Thread watch = new Thread(() -> {
      awaitEndOfInput();
      stop = true;
      // It may wait for room that a dead process does not make any more.
      LockSupport.parkNanos(TimeUnit.SECONDS.toNanos(END_MAX_S));
      Runtime.getRuntime().halt(1);
    });
    watch.setDaemon(true);
    watch.start();
    Ends ends = Ends.open(task, dir(tag), true);
    pin(task.otherCpu());
    if (task.oneWay()) {
      produce(ends);
    } else {
      echo(ends);
    }
  }

  /** Whether the compiler has had its time. */
  private static boolean warm(long messages, int len, long start) {
    int fragments = 1 + (len - 1) / Ends.FRAGMENT_BYTES_MAX;
    long spent = System.nanoTime() - start;
    return spent >= WARM_NS && (messages * fragments >= WARM_FRAGMENTS || spent >= WARM_NS_MAX);
  }

  private static void ping(Ends ends, Task task, long[] samples) {
    long trips = 0;
    long warming = System.nanoTime();
    while (!warm(trips, task.len(), warming)) {
      trips = trips(ends, trips, task.together());
    }
    for (int index = 0; index < samples.length; index++) {
      long start = System.nanoTime();
      trips = trips(ends, trips, task.together());
      samples[index] = (System.nanoTime() - start) / task.together();
    }
  }

  private static long trips(Ends ends, long done, int more) {
    for (long count = done + 1; count <= done + more; count++) {
      ends.send();
      if (!ends.receive(count)) {
        throw new IllegalStateException("silent");
      }
      inOrder(ends, count);
    }
    return done + more;
  }

  private static void inOrder(Ends ends, long count) {
    if (ends.first != count) {
      throw new IllegalStateException(
          "message " + ends.first + " came in place of " + count);
    }
  }

  private static void echo(Ends ends) {
    for (long count = 1; !stop; count++) {
      while (ends.received < count) {
        ends.poll();
        if (stop) {
          return;
        }
      }
      inOrder(ends, count);
      ends.send();
    }
  }

  private static void consume(Ends ends, Task task, long[] samples) {
    long wanted = 0;
    long start = System.nanoTime();
    while (wanted < task.warmUp() || !warm(wanted, task.len(), start)) {
      wanted = take(ends, wanted, task.together());
    }
    start = System.nanoTime();
    for (int index = 0; index < samples.length; index++) {
      wanted = take(ends, wanted, task.together());
      long now = System.nanoTime();
      samples[index] = (now - start) * PER_SAMPLE / task.together();
      start = now;
    }
  }

  private static long take(Ends ends, long done, int more) {
    if (!ends.receive(done + more)) {
      throw new IllegalStateException("silent");
    }
    // The last one has its own number only if nothing before it was lost.
    inOrder(ends, ends.received);
    return done + more;
  }

  private static void produce(Ends ends) {
    for (long count = 1; ; count++) {
      int looks = 0;
      while (!ends.trySend()) {
        if (stop) {
          return;
        }
        if (++looks < LOOKS) {
          Thread.onSpinWait();
        } else {
          looks = 0;
          Thread.yield();
        }
      }
      if (count % 64 == 0 && stop) {
        return;
      }
    }
  }
}
