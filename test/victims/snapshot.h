// A list of "name: value" lines, taken at the start and compared with a fresh one in each round.
#ifndef REPLPAGE_TEST_SNAPSHOT_H_
#define REPLPAGE_TEST_SNAPSHOT_H_

#include "victim.h"

enum { kSnapshotBytes = 128 * 1024 };

struct Snapshot {
  size_t used;
  char text[kSnapshotBytes];
};

__attribute__((format(printf, 2, 3))) static inline void snapshot_add(struct Snapshot* snapshot,
                                                                      const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t left = kSnapshotBytes - snapshot->used;
  int written = vsnprintf(snapshot->text + snapshot->used, left, format, arguments);
  va_end(arguments);
  VICTIM_CHECK(written >= 0 && (size_t)written < left, "the snapshot is too small");
  snapshot->used += (size_t)written;
}

// Reads a whole small file; returns its length, or -1.
static inline ssize_t snapshot_read(const char* path, char* buffer, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return -1;
  }
  size_t used = 0;
  for (;;) {
    ssize_t got = read(fd, buffer + used, size - 1 - used);
    if (got <= 0) {
      break;
    }
    used += (size_t)got;
  }
  close(fd);
  buffer[used] = '\0';
  return (ssize_t)used;
}

// Adds a file's bytes, those that do not print as hexadecimal.
static inline void snapshot_add_file(struct Snapshot* snapshot, const char* path) {
  static __thread char buffer[64 * 1024];
  ssize_t length = snapshot_read(path, buffer, sizeof buffer);
  snapshot_add(snapshot, "%s (%zd bytes): ", path, length);
  for (ssize_t i = 0; i < length; i++) {
    unsigned char byte = (unsigned char)buffer[i];
    snapshot_add(snapshot, byte >= ' ' && byte < 127 ? "%c" : "\\%02x", byte);
    if (byte == '\n') {
      snapshot_add(snapshot, "\n");
    }
  }
  snapshot_add(snapshot, "\n");
}

static inline void snapshot_add_link(struct Snapshot* snapshot, const char* path) {
  char target[PATH_MAX] = "";
  ssize_t length = readlink(path, target, sizeof target - 1);
  snapshot_add(snapshot, "%s -> %s (%d)\n", path, target, length < 0 ? errno : 0);
}

// Adds those lines of a "Name:\tvalue" file whose names are in `names` (ends with NULL).
static inline void snapshot_add_fields(struct Snapshot* snapshot, const char* path,
                                       const char* const* names) {
  char buffer[8192];
  VICTIM_CHECK(snapshot_read(path, buffer, sizeof buffer) > 0, "cannot read %s", path);
  for (; *names != NULL; names++) {
    size_t length = strlen(*names);
    for (char* line = buffer; line != NULL; line = strchr(line, '\n')) {
      line += *line == '\n';
      if (strncmp(line, *names, length) == 0 && line[length] == ':') {
        snapshot_add(snapshot, "%.*s\n", (int)strcspn(line, "\n"), line);
      }
    }
  }
}

// Fails with the first line in which the two differ.
static inline void snapshot_compare(const struct Snapshot* before, const struct Snapshot* now) {
  const char* a = before->text;
  const char* b = now->text;
  while (*a != '\0' || *b != '\0') {
    size_t length_a = strcspn(a, "\n");
    size_t length_b = strcspn(b, "\n");
    VICTIM_CHECK(length_a == length_b && memcmp(a, b, length_a) == 0, "was `%.*s', is `%.*s'",
                 (int)length_a, a, (int)length_b, b);
    a += length_a + (a[length_a] == '\n');
    b += length_b + (b[length_b] == '\n');
  }
}

// For ever: takes a snapshot with `take` and compares it with the first one.
static inline void snapshot_hold(void (*take)(struct Snapshot*)) {
  static struct Snapshot before;
  static struct Snapshot now;
  take(&before);
  victim_ready();
  for (;;) {
    now.used = 0;
    take(&now);
    snapshot_compare(&before, &now);
    victim_round();
    victim_pace();
  }
}

#endif  // REPLPAGE_TEST_SNAPSHOT_H_
