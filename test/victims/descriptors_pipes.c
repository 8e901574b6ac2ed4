// Pipes that always hold something: an ordinary one, one of another size, one of packets, a named
// one, a non-blocking full one; what goes in comes out, once and in order.
#include <sys/ioctl.h>

#include "victim.h"

enum { kPlain, kLarge, kPackets, kNamed, kPipes, kDepth = 100 };

struct Pipe {
  const char* name;
  int read_end, write_end;
  uint64_t in, out;
};

static struct Pipe pipes[kPipes] = {{"pipe", -1, -1, 0, 0},
                                    {"large pipe", -1, -1, 0, 0},
                                    {"packet pipe", -1, -1, 0, 0},
                                    {"named pipe", -1, -1, 0, 0}};
static int full[2];

static void put(struct Pipe* pipe) {
  uint64_t words[2] = {pipe->in, pipe->in * 7};
  VICTIM_CHECK(write(pipe->write_end, words, 16) == 16, "write to the %s", pipe->name);
  pipe->in++;
}

static void get(struct Pipe* pipe) {
  uint64_t words[512] = {0};
  // A packet pipe gives one packet, however much is asked for.
  size_t want = pipe == &pipes[kPackets] ? sizeof words : 16;
  ssize_t got = read(pipe->read_end, words, want);
  VICTIM_CHECK(got == 16, "the %s gave %zd bytes", pipe->name, got);
  VICTIM_CHECK(words[0] == pipe->out && words[1] == pipe->out * 7, "the %s gave %lu, not %lu",
               pipe->name, words[0], pipe->out);
  pipe->out++;
}

static void check_state(struct Pipe* pipe, int size) {
  int queued = -1;
  ioctl(pipe->read_end, FIONREAD, &queued);
  VICTIM_CHECK(queued == (int)(16 * (pipe->in - pipe->out)), "the %s holds %d bytes", pipe->name,
               queued);
  VICTIM_CHECK(fcntl(pipe->read_end, F_GETPIPE_SZ) == size, "the %s has size %d, not %d",
               pipe->name, fcntl(pipe->read_end, F_GETPIPE_SZ), size);
}

static void set_up(void) {
  int ends[2];
  VICTIM_CHECK(pipe(ends) == 0, "pipe");
  pipes[kPlain].read_end = ends[0];
  pipes[kPlain].write_end = ends[1];
  VICTIM_CHECK(pipe2(ends, O_CLOEXEC) == 0 && fcntl(ends[0], F_SETPIPE_SZ, 1 << 20) > 0, "pipe");
  pipes[kLarge].read_end = ends[0];
  pipes[kLarge].write_end = ends[1];
  VICTIM_CHECK(pipe2(ends, O_DIRECT) == 0 && fcntl(ends[0], F_SETPIPE_SZ, 1 << 20) > 0, "pipe");
  pipes[kPackets].read_end = ends[0];
  pipes[kPackets].write_end = ends[1];
  char path[PATH_MAX];
  victim_path(path, sizeof path, "fifo");
  VICTIM_CHECK(mkfifo(path, 0600) == 0, "mkfifo");
  pipes[kNamed].read_end = open(path, O_RDONLY | O_NONBLOCK);
  pipes[kNamed].write_end = open(path, O_WRONLY);
  VICTIM_CHECK(pipe2(full, O_NONBLOCK) == 0, "pipe");
  static char page[kPage];
  while (write(full[1], page, kPage) > 0) {
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up();
  int sizes[kPipes];
  for (int i = 0; i < kPipes; i++) {
    sizes[i] = fcntl(pipes[i].read_end, F_GETPIPE_SZ);
    for (int depth = 0; depth < kDepth; depth++) {
      put(&pipes[i]);
    }
  }
  victim_ready();
  for (;;) {
    for (int i = 0; i < kPipes; i++) {
      get(&pipes[i]);
      put(&pipes[i]);
      check_state(&pipes[i], sizes[i]);
    }
    char byte = 0;
    VICTIM_CHECK(write(full[1], &byte, 1) == -1 && errno == EAGAIN, "the full pipe has room");
    victim_round();
    victim_pace();
  }
}
