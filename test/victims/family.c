// A tree: a child in a process group of its own, a child in a session of its own, a grandchild, an
// orphan taken in by the subreaper, a zombie that nobody reaps, and a stopped child. All talk to
// the root over pipes, and each checks its own relations.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "victim.h"

struct Member {
  const char* name;
  pid_t pid, parent, group, session;
  int to_member, to_root;
};

enum { kGroup, kSession, kGrandchild, kOrphan, kMembers };
static struct Member* members;  // shared, so that all can read what the root expects
static int lifeline[2];  // its end tells descendants that wait for nothing else that the root died
static pid_t zombie;
static pid_t stopped;
static _Atomic uint64_t* stopped_counter;

static void check_self(const struct Member* member) {
  VICTIM_CHECK(getpid() == member->pid, "%s: pid %d, not %d", member->name, getpid(), member->pid);
  VICTIM_CHECK(getppid() == member->parent, "%s: parent %d, not %d", member->name, getppid(),
               member->parent);
  VICTIM_CHECK(getpgrp() == member->group, "%s: group %d, not %d", member->name, getpgrp(),
               member->group);
  VICTIM_CHECK(getsid(0) == member->session, "%s: session %d, not %d", member->name, getsid(0),
               member->session);
}

static _Noreturn void serve(struct Member* member, int from_root, int to_root) {
  uint64_t expected = 0;
  for (;;) {
    uint64_t number;
    ssize_t got = read(from_root, &number, sizeof number);
    if (got == 0) {
      _exit(0);
    }
    VICTIM_CHECK(got == sizeof number, "%s: read", member->name);
    VICTIM_CHECK(number == expected, "%s: %lu, not %lu", member->name, number, expected);
    expected++;
    check_self(member);
    number *= 3;
    VICTIM_CHECK(write(to_root, &number, sizeof number) == sizeof number, "%s: write",
                 member->name);
  }
}

// Leaves the root's ends of the pipes to the root alone, so that its end is seen as theirs.
static void close_root_ends(int made) {
  close(lifeline[1]);
  for (int i = 0; i < made; i++) {
    close(members[i].to_member);
    close(members[i].to_root);
  }
}

// Starts a member `hops` forks away; with hops == 2 the one in between ends, or stays and waits.
static void start(int which, const char* name, int hops, bool middle_ends) {
  struct Member* member = &members[which];
  int down[2];
  int up[2];
  VICTIM_CHECK(pipe(down) == 0 && pipe(up) == 0, "pipe");
  member->name = name;
  member->to_member = down[1];
  member->to_root = up[0];
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    close_root_ends(which + 1);
    pid_t middle = getpid();
    if (hops == 2 && fork() != 0) {
      if (middle_ends) {
        _exit(0);
      }
      char byte;
      _exit(read(lifeline[0], &byte, 1) == 0 ? 0 : 1);
    }
    if (which == kGroup) {
      setpgid(0, 0);
    } else if (which == kSession) {
      setsid();
    }
    if (hops == 2 && middle_ends) {
      while (getppid() == middle) {
        usleep(100);
      }
    }
    member->parent = getppid();
    member->group = getpgrp();
    member->session = getsid(0);
    __atomic_store_n(&member->pid, getpid(), __ATOMIC_SEQ_CST);
    serve(member, down[0], up[1]);
  }
  close(down[0]);
  close(up[1]);
  if (middle_ends) {
    VICTIM_CHECK(waitpid(child, NULL, 0) == child, "waitpid");
  }
  while (__atomic_load_n(&member->pid, __ATOMIC_SEQ_CST) == 0) {
    usleep(100);
  }
}

static void make_zombie(void) {
  zombie = fork();
  if (zombie == 0) {
    _exit(37);
  }
  siginfo_t info;
  VICTIM_CHECK(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0, "waitid");
}

static void check_zombie(bool reap) {
  siginfo_t info = {.si_pid = 0};
  int flags = WEXITED | WNOHANG | (reap ? 0 : WNOWAIT);
  VICTIM_CHECK(waitid(P_PID, (id_t)zombie, &info, flags) == 0, "the zombie %d is gone", zombie);
  VICTIM_CHECK(info.si_pid == zombie && info.si_code == CLD_EXITED && info.si_status == 37,
               "the zombie: pid %d, code %d, status %d", info.si_pid, info.si_code, info.si_status);
}

static void start_stopped(void) {
  stopped = fork();
  if (stopped == 0) {
    for (;;) {
      atomic_fetch_add(stopped_counter, 1);
      usleep(100);
    }
  }
  while (atomic_load(stopped_counter) == 0) {
    usleep(100);
  }
  kill(stopped, SIGSTOP);
  int status;
  VICTIM_CHECK(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status), "stopping");
}

// A stopped child stays stopped; now and then it is continued and stopped again.
static void check_stopped(uint64_t round) {
  static uint64_t seen;
  if (seen != 0) {
    VICTIM_CHECK(atomic_load(stopped_counter) == seen, "the stopped child runs");
  }
  seen = atomic_load(stopped_counter);
  if (round % 64 == 63) {
    int status = 0;
    kill(stopped, SIGCONT);
    VICTIM_CHECK(waitpid(stopped, &status, WCONTINUED) == stopped && WIFCONTINUED(status),
                 "continuing gave status %#x", status);
    while (atomic_load(stopped_counter) == seen) {
      usleep(100);
    }
    kill(stopped, SIGSTOP);
    VICTIM_CHECK(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status) &&
                     WSTOPSIG(status) == SIGSTOP,
                 "stopping again gave status %#x", status);
    seen = atomic_load(stopped_counter);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  setpgid(0, 0);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  VICTIM_CHECK(pipe(lifeline) == 0, "pipe");
  members = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  stopped_counter = (void*)((char*)members + kPage / 2);
  start(kGroup, "child in a group of its own", 1, false);
  start(kSession, "child in a session of its own", 1, false);
  start(kGrandchild, "grandchild", 2, false);
  start(kOrphan, "orphan", 2, true);
  VICTIM_CHECK(members[kOrphan].parent == getpid(), "the subreaper did not get the orphan");
  make_zombie();
  start_stopped();
  struct Member self = {"root", getpid(), getppid(), getpgrp(), getsid(0), 0, 0};
  victim_ready();
  for (uint64_t round = 0;; round++) {
    for (int i = 0; i < kMembers; i++) {
      uint64_t number = round;
      VICTIM_CHECK(write(members[i].to_member, &number, sizeof number) == sizeof number, "write");
      VICTIM_CHECK(read(members[i].to_root, &number, sizeof number) == sizeof number, "read");
      VICTIM_CHECK(number == 3 * round, "%s answered %lu", members[i].name, number);
    }
    self.parent = getppid();  // the root's own parent is outside the group
    check_self(&self);
    check_zombie(round % 100 == 99);
    if (round % 100 == 99) {
      make_zombie();
    }
    check_stopped(round);
    victim_round();
    victim_pace();
  }
}
