import io.aeron.Aeron;
import io.aeron.ExclusivePublication;
import io.aeron.Image;
import io.aeron.ImageFragmentAssembler;
import io.aeron.Publication;
import io.aeron.Subscription;
import io.aeron.logbuffer.BufferClaim;
import io.aeron.logbuffer.FragmentHandler;
import io.aeron.logbuffer.Header;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import org.agrona.DirectBuffer;
import org.agrona.MutableDirectBuffer;
import org.agrona.concurrent.UnsafeBuffer;

/**
 * One process's ends of a link over shared memory: an exclusive publication, and an image that is
 * polled. Both are configured as the peer of the C client is.
 */
final class Ends implements FragmentHandler {
  /** Largest message that fits into one fragment; a longer one is put together from several. */
  static final int FRAGMENT_BYTES_MAX = Driver.MTU - 32;
  /** A log of three such terms: smaller than the default of 64 MiB, which has a longer tail. */
  private static final String CHANNEL = "aeron:ipc?term-length=16m";
  /** How long the other side may take to appear or to answer. */
  private static final long SILENCE_MAX_NS = 10_000_000_000L;
  /** Up to here words are written one by one. */
  private static final int WORDS_BYTES_MAX = 256;
  /** Looks between two at the clock. */
  private static final int LOOKS = 1 << 20;

  private final ExclusivePublication publication;
  private final Image image;
  private final FragmentHandler handler;
  private final BufferClaim claim = new BufferClaim();
  /** What is sent: the first word is the sender's count. */
  private final UnsafeBuffer message;
  private final int touched;
  private final boolean large;
  private final int fragmentsMax;
  private long count;
  /** Over all words read: a field, so that the reads are not left out. */
  private long sum;

  /** Messages received until now. */
  long received;
  /** The first word of the last one. */
  long first;

  private Ends(Aeron aeron, Task task, boolean second) throws InterruptedException {
    int out = second ? 2 : 1;
    publication = aeron.addExclusivePublication(CHANNEL, out);
    Subscription subscription = aeron.addSubscription("aeron:ipc", 3 - out);
    long start = System.nanoTime();
    while (!publication.isConnected() || subscription.hasNoImages()) {
      wait(start, "the other process");
    }
    image = subscription.imageAtIndex(0);
    large = task.len() > FRAGMENT_BYTES_MAX;
    handler = large ? new ImageFragmentAssembler(this, task.len()) : this;
    fragmentsMax = task.oneWay() ? 64 : large ? 20 : 1;
    touched = task.touched();
    message = new UnsafeBuffer(ByteBuffer.allocateDirect(task.len()));
    message.setMemory(0, task.len(), (byte) 1);
  }

  /** Waits for the driver and for the other process. */
  static Ends open(Task task, Path dir, boolean second) throws InterruptedException {
    long start = System.nanoTime();
    while (!Files.exists(dir.resolve("cnc.dat"))) {
      wait(start, "the driver");
    }
    Aeron.Context context = new Aeron.Context().aeronDirectoryName(dir.toString());
    return new Ends(Aeron.connect(context), task, second);
  }

  private static void wait(long start, String what) throws InterruptedException {
    if (System.nanoTime() - start > SILENCE_MAX_NS) {
      throw new IllegalStateException(what + " does not appear");
    }
    Thread.sleep(2);
  }

  /** Sends the next message, numbered, without waiting; false while there is no room. */
  boolean trySend() {
    long next = count + 1;
    message.putLong(0, next);
    long position;
    if (large) {
      position = publication.offer(message, 0, message.capacity());
    } else {
      position = publication.tryClaim(message.capacity(), claim);
      if (position > 0) {
        write(claim.buffer(), claim.offset());
        claim.commit();
      }
    }
    if (position > 0) {
      count = next;
      return true;
    }
    if (position == Publication.CLOSED || position == Publication.MAX_POSITION_EXCEEDED) {
      throw new IllegalStateException("the publication ended with " + position);
    }
    return false;
  }

  /** Few words one by one: the general copy is a call out of the compiled code. */
  private void write(MutableDirectBuffer to, int at) {
    if (touched > WORDS_BYTES_MAX || touched % Long.BYTES != 0) {
      to.putBytes(at, message, 0, touched);
      return;
    }
    for (int i = 0; i < touched; i += Long.BYTES) {
      to.putLong(at + i, message.getLong(i));
    }
  }

  /** Sends the next message; waits while there is no room. */
  void send() {
    while (!trySend()) {
      Thread.onSpinWait();
    }
  }

  /** Polls once. */
  void poll() {
    image.poll(handler, fragmentsMax);
  }

  /** Waits until {@code wanted} messages in all are here; false if none comes for a long time. */
  boolean receive(long wanted) {
    int looks = 0;
    long start = 0;
    while (received < wanted) {
      poll();
      if (++looks == LOOKS) {
        long now = System.nanoTime();
        start = start == 0 ? now : start;
        if (now - start > SILENCE_MAX_NS) {
          return false;
        }
        looks = 0;
      }
    }
    return true;
  }

  /** Reads a message word by word; four sums, since one would wait for itself. */
  @Override
  public void onFragment(DirectBuffer buffer, int offset, int length, Header header) {
    int end = offset + (touched & -Long.BYTES);
    int at = offset;
    long a = 0;
    long b = 0;
    long c = 0;
    long d = 0;
    for (; at + 32 <= end; at += 32) {
      a += buffer.getLong(at);
      b += buffer.getLong(at + 8);
      c += buffer.getLong(at + 16);
      d += buffer.getLong(at + 24);
    }
    for (; at < end; at += 8) {
      a += buffer.getLong(at);
    }
    first = buffer.getLong(offset);
    sum += a + b + c + d;
    received++;
  }
}
