// Lets every open(2) of a file in the directory hang, as on a mount whose server does not answer,
// until standard input ends: hang_opens DIRECTORY. Prints a line when it has begun.
#include <fcntl.h>
#include <stdio.h>
#include <sys/fanotify.h>
#include <unistd.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY);
  if (group < 0) {
    perror("fanotify_init");
    return 77;
  }
  if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, AT_FDCWD, argv[1])) {
    perror("fanotify_mark");
    return 77;
  }
  puts("hanging");
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) continue;
  return 0;  // what hangs is let go
}
