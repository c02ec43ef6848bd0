/**
 * One case, as the command line gives it: the arguments of every peer's program (peers/link).
 *
 * @param oneWay one way, as much as goes through; otherwise round trips
 * @param len bytes of a message
 * @param samples samples wanted
 * @param together messages or round trips timed together
 * @param touched bytes of a message that both sides touch
 * @param warmUp messages of a stream that come first and are not counted
 * @param cpu where the first process runs
 * @param otherCpu where the second one does
 */
record Task(
    boolean oneWay, int len, int samples, int together, int touched, int warmUp, int cpu,
    int otherCpu) {

  /** Reads the arguments; null if they are no task. */
  static Task parse(String[] words) {
    if (words.length != 8 || !(words[0].equals("one-way") || words[0].equals("round-trip"))) {
      return null;
    }
    int[] numbers = new int[7];
    try {
      for (int i = 0; i < numbers.length; i++) {
        numbers[i] = Integer.parseUnsignedInt(words[i + 1]);
      }
    } catch (NumberFormatException e) {
      return null;
    }
    Task task = new Task(
        words[0].equals("one-way"), numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
        numbers[5], numbers[6]);
    boolean sound = task.samples > 0 && task.together > 0
        && task.touched >= Long.BYTES && task.touched <= task.len;
    return sound ? task : null;
  }
}
