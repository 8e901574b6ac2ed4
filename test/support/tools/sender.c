// Queues numbered real-time signals to a process: sender PID RATE COUNT. The values are 0, 1, 2
// ...; a full queue is waited for. Ends when COUNT are sent or nobody is there; prints how many
// were sent.
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char** argv) {
  if (argc < 4) {
    return 2;
  }
  int pid = atoi(argv[1]);
  long rate = atol(argv[2]);
  int count = atoi(argv[3]);
  int sent = 0;
  while (sent < count) {
    union sigval value = {.sival_int = sent};
    if (sigqueue(pid, SIGRTMIN + 1, value) == 0) {
      sent++;
    } else if (errno != EAGAIN) {
      break;
    }
    struct timespec pause = {0, 1000000000 / rate};
    nanosleep(&pause, NULL);
  }
  printf("%d\n", sent);
  return sent == count ? 0 : 1;
}
