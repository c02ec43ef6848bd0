import io.aeron.driver.MediaDriver;
import io.aeron.driver.ThreadingMode;
import java.nio.file.Path;
import org.agrona.IoUtil;
import org.agrona.concurrent.SleepingIdleStrategy;

/** The media driver's process: configured as that of the C client is, and not pinned. */
final class Driver {
  /** The largest packet, so that a message of 64 KiB less a head is one fragment. */
  static final int MTU = 65_504;
  /** What it sleeps when it has nothing to do: it must keep moving the publisher's limit. */
  private static final long SLEEP_NS = 100_000;

  private Driver() {}

  /** Runs until this process's input ends; removes its files then. */
  static void run(Path dir) {
    MediaDriver.Context context = new MediaDriver.Context()
        .aeronDirectoryName(dir.toString())
        .dirDeleteOnStart(true)
        .threadingMode(ThreadingMode.SHARED)
        .sharedIdleStrategy(new SleepingIdleStrategy(SLEEP_NS))
        .ipcMtuLength(MTU)
        .termBufferSparseFile(false);
    MediaDriver.launch(context);
    Peer.awaitEndOfInput();
    // Nobody else is left to remove logs of many MiB; the driver needs no orderly end.
    IoUtil.delete(dir.toFile(), true);
    Runtime.getRuntime().halt(0);
  }
}
