// What a process is beside its memory: limits, umask, directories, executable, arguments (one of
// them rewritten, as servers do for ps), environment, auxv, brk, personality, ids, priorities.
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "snapshot.h"

static const char* const fields[] = {"Name", "Umask", "SigIgn", "SigCgt", "THP_enabled", NULL};

static void take(struct Snapshot* snapshot) {
  for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
    struct rlimit limit;
    getrlimit(resource, &limit);
    snapshot_add(snapshot, "limit %d: %lu %lu\n", resource, limit.rlim_cur, limit.rlim_max);
  }
  snapshot_add_link(snapshot, "/proc/self/cwd");
  snapshot_add_link(snapshot, "/proc/self/root");
  snapshot_add_link(snapshot, "/proc/self/exe");
  snapshot_add_file(snapshot, "/proc/self/cmdline");
  snapshot_add_file(snapshot, "/proc/self/environ");
  snapshot_add_file(snapshot, "/proc/self/auxv");
  snapshot_add_file(snapshot, "/proc/self/comm");
  snapshot_add_file(snapshot, "/proc/self/oom_score_adj");
  snapshot_add_file(snapshot, "/proc/self/coredump_filter");
  snapshot_add_fields(snapshot, "/proc/self/status", fields);
  snapshot_add(snapshot, "brk %p\npersonality %x\n", sbrk(0), personality(0xffffffff));
  snapshot_add(snapshot, "pid %d tid %d pgid %d sid %d\n", getpid(), gettid(), getpgrp(),
               getsid(0));
  snapshot_add(snapshot, "nice %d\n", getpriority(PRIO_PROCESS, 0));
  snapshot_add(snapshot, "thp disabled %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
  snapshot_add(snapshot, "environment: %s\n", getenv("VICTIM_VARIABLE"));
}

static void write_text(const char* path, const char* text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  VICTIM_CHECK(fd >= 0 && write(fd, text, strlen(text)) > 0, "cannot write %s", path);
  close(fd);
}

int main(int argc, char** argv) {
  if (getenv("VICTIM_VARIABLE") == NULL) {  // once more, with a personality and a variable
    setenv("VICTIM_VARIABLE", "a value with spaces = and more", 1);
    personality(ADDR_NO_RANDOMIZE);
    execv("/proc/self/exe", argv);
  }
  victim_start(argc, argv);
  setsid();
  umask(037);
  VICTIM_CHECK(chdir(victim_directory) == 0, "chdir");
  struct rlimit files = {512, 700};
  setrlimit(RLIMIT_NOFILE, &files);
  struct rlimit core = {0, 4096};
  setrlimit(RLIMIT_CORE, &core);
  struct rlimit stack = {4 << 20, 16 << 20};
  setrlimit(RLIMIT_STACK, &stack);
  setpriority(PRIO_PROCESS, 0, 4);
  write_text("/proc/self/oom_score_adj", "321");
  write_text("/proc/self/coredump_filter", "0x21");
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  prctl(PR_SET_NAME, "renamed victim");
  VICTIM_CHECK(sbrk(123 * kPage) != (void*)-1, "sbrk");
  setenv("LATER", "set after the start", 1);
  argv[0][0] = '*';
  snapshot_hold(take);
}
