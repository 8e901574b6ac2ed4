// Stops and continues all threads of a process tree again and again, as a tracer that captures
// would, for the given milliseconds: interrupter PID MILLISECONDS. It changes nothing and passes
// every signal on. Prints how many times it stopped them.
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kMaxThreads = 1024 };
static pid_t threads[kMaxThreads];
static bool stopped[kMaxThreads];
static int count;

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int slot_of(pid_t tid) {
  for (int i = 0; i < count; i++) {
    if (threads[i] == tid) {
      return i;
    }
  }
  if (count == kMaxThreads) {
    exit(3);
  }
  threads[count] = tid;
  stopped[count] = false;
  return count++;
}

static void forget(int slot) {
  threads[slot] = threads[--count];
  stopped[slot] = stopped[count];
}

static void seize_all(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR* tasks = opendir(path);
  if (tasks == NULL) {
    return;
  }
  const long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
  for (struct dirent* entry; (entry = readdir(tasks)) != NULL;) {
    pid_t tid = atoi(entry->d_name);
    if (tid > 0 && ptrace(PTRACE_SEIZE, tid, 0, options) == 0) {
      slot_of(tid);
      char children[96];
      snprintf(children, sizeof children, "/proc/%d/task/%d/children", pid, tid);
      FILE* list = fopen(children, "re");
      for (int child; list != NULL && fscanf(list, "%d", &child) == 1;) {
        seize_all(child);
      }
      if (list != NULL) {
        fclose(list);
      }
    }
  }
  closedir(tasks);
}

// Handles one stop; a stop that is not ours to keep is continued at once.
static void handle(pid_t tid, int status) {
  int slot = slot_of(tid);
  if (WIFEXITED(status) || WIFSIGNALED(status)) {
    forget(slot);
    return;
  }
  int event = status >> 16;
  int signal = WSTOPSIG(status);
  bool group_stop = event == PTRACE_EVENT_STOP && signal != SIGTRAP;
  if (group_stop) {
    ptrace(PTRACE_LISTEN, tid, 0, 0);
    stopped[slot] = true;
  } else if (event == PTRACE_EVENT_STOP) {
    stopped[slot] = true;
  } else {
    ptrace(PTRACE_CONT, tid, 0, event != 0 ? 0 : signal);
  }
}

static void drain(int flags) {
  int status;
  for (pid_t tid; (tid = waitpid(-1, &status, __WALL | flags)) > 0;) {
    handle(tid, status);
    flags = WNOHANG;
  }
}

static void stop_all(void) {
  for (int i = 0; i < count; i++) {
    stopped[i] = false;
    ptrace(PTRACE_INTERRUPT, threads[i], 0, 0);
  }
  uint64_t until = now_ms() + 50;  // one in vfork or in the disk's hands does not stop
  for (int i = 0; i < count && now_ms() < until;) {
    drain(WNOHANG);
    i = i < count && stopped[i] ? i + 1 : i;
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    return 2;
  }
  seize_all(atoi(argv[1]));
  uint64_t until = now_ms() + strtoul(argv[2], NULL, 10);
  int rounds = 0;
  for (; now_ms() < until && count > 0; rounds++) {
    stop_all();
    for (int i = 0; i < count; i++) {
      ptrace(PTRACE_CONT, threads[i], 0, 0);
    }
    uint64_t resume = now_ms() + 5;
    while (now_ms() < resume) {
      drain(WNOHANG);
      struct timespec pause = {0, 200000};
      nanosleep(&pause, NULL);
    }
  }
  stop_all();
  printf("stopped %d threads %d times\n", count, rounds);
  return count == 0;  // the end of this process detaches and continues all
}
