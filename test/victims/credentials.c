// Credentials and their kin. As `root`: capabilities, securebits and bounding set changed. As
// `nobody`: real, effective, saved and file-system ids all different, groups, ambient capability.
// As `threads`: one thread with ids of its own, as the raw system call allows.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "snapshot.h"

static const char* const fields[] = {"Uid",    "Gid",    "Groups",     "CapInh", "CapPrm", "CapEff",
                                     "CapBnd", "CapAmb", "NoNewPrivs", "Umask",  "SigIgn", NULL};

static void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  for (int i = 0; i < 2; i++) {
    data[i].effective = (uint32_t)(effective >> (32 * i));
    data[i].permitted = (uint32_t)(permitted >> (32 * i));
    data[i].inheritable = (uint32_t)(inheritable >> (32 * i));
  }
  VICTIM_CHECK(syscall(SYS_capset, &header, data) == 0, "capset");
}

static void take(struct Snapshot* snapshot) {
  snapshot_add_fields(snapshot, "/proc/thread-self/status", fields);
  snapshot_add(snapshot, "securebits %x\n", prctl(PR_GET_SECUREBITS));
  snapshot_add(snapshot, "dumpable %d\n", prctl(PR_GET_DUMPABLE));
  snapshot_add(snapshot, "keepcaps %d\n", prctl(PR_GET_KEEPCAPS));
  snapshot_add(snapshot, "no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
  int subreaper = -1;
  int parent_death = -1;
  prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
  prctl(PR_GET_PDEATHSIG, &parent_death);
  snapshot_add(snapshot, "subreaper %d\npdeathsig %d\n", subreaper, parent_death);
  uid_t ids[6];
  getresuid(&ids[0], &ids[1], &ids[2]);
  getresgid(&ids[3], &ids[4], &ids[5]);
  snapshot_add(snapshot, "ids %u %u %u %u %u %u\n", ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]);
}

static void become_root_with_less(void) {
  prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE);
  set_capabilities((1ull << CAP_CHOWN) | (1ull << CAP_SETPCAP),
                   (1ull << CAP_CHOWN) | (1ull << CAP_SETPCAP) | (1ull << CAP_KILL),
                   1ull << CAP_KILL);
  VICTIM_CHECK(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP) == 0,
               "securebits");
  prctl(PR_SET_CHILD_SUBREAPER, 1);
}

static void become_nobody(void) {
  gid_t groups[] = {65534, 1234, 77};
  VICTIM_CHECK(setgroups(3, groups) == 0, "setgroups");
  VICTIM_CHECK(setresgid(65534, 65533, 65532) == 0, "setresgid");
  prctl(PR_SET_KEEPCAPS, 1);
  VICTIM_CHECK(setresuid(65534, 65533, 65532) == 0, "setresuid");
  setfsuid(65532);
  set_capabilities(0, 1ull << CAP_NET_RAW, 1ull << CAP_NET_RAW);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void* hold(void* unused) {
  (void)unused;
  syscall(SYS_setresgid, 4001, 4002, 4003);
  syscall(SYS_setresuid, 4001, 4002, 4003);
  prctl(PR_SET_DUMPABLE, 1);  // of the whole process; the change of ids cleared it
  atomic_store(&victim_status->number, 1);
  struct Snapshot* before = calloc(1, sizeof *before);
  struct Snapshot* now = calloc(1, sizeof *now);
  take(before);
  for (;;) {
    now->used = 0;
    take(now);
    snapshot_compare(before, now);
    atomic_fetch_add(&victim_status->counters[0], 1);
    victim_pace();
  }
  return NULL;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  const char* kind = argc > 2 ? argv[2] : "root";
  umask(031);
  signal(SIGUSR2, SIG_IGN);  // before any snapshot is taken
  if (strcmp(kind, "nobody") == 0) {
    become_nobody();
  } else if (strcmp(kind, "threads") == 0) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, hold, NULL) == 0, "no thread");
    while (atomic_load(&victim_status->number) == 0) {
      victim_pace();
    }
  } else {
    become_root_with_less();
  }
  // A change of ids clears these two.
  prctl(PR_SET_PDEATHSIG, SIGUSR2);
  prctl(PR_SET_DUMPABLE, strcmp(kind, "nobody") == 0 ? 0 : 1);
  snapshot_hold(take);
}
