// Holds one thing that cannot be replicated (second argument), tells its descriptor or address in
// the status page, and goes on: `protect` must refuse it and leave it untouched. With a third
// argument it takes it up when SIGUSR1 comes.
#include <linux/aio_abi.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "victim.h"

static int need(long result, const char* what) {
  if (result < 0) {
    victim_skip(what);
  }
  return (int)result;
}

static uint64_t hold_io_uring(void) {
  struct io_uring_params parameters = {0};
  int fd = need(syscall(SYS_io_uring_setup, 8, &parameters), "no io_uring");
  mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
  return (uint64_t)fd;
}

static uint64_t hold_aio(void) {
  aio_context_t context = 0;
  need(syscall(SYS_io_setup, 8, &context), "no AIO");
  return context;
}

static uint64_t hold_message_notification(void) {
  char name[64];
  snprintf(name, sizeof name, "/replpage-victim-%d", getpid());
  mqd_t queue = need(mq_open(name, O_RDWR | O_CREAT, 0600, NULL), "no message queues");
  mq_unlink(name);
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
  need(mq_notify(queue, &event), "mq_notify");
  return (uint64_t)queue;
}

static uint64_t hold_seccomp(void) {
  struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog filter = {sizeof program / sizeof program[0], program};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), "no seccomp");
  return 0;
}

static uint64_t hold_user_namespace(void) {
  need(unshare(CLONE_NEWUSER), "no user namespaces");
  return 0;
}

// The children of this process live in another PID namespace than itself.
static uint64_t hold_pid_namespace(void) {
  need(unshare(CLONE_NEWPID), "no PID namespaces");
  pid_t child = fork();
  if (child == 0) {
    for (;;) {
      pause();
    }
  }
  return (uint64_t)child;
}

static uint64_t hold_network_namespace(void) {
  need(unshare(CLONE_NEWNET), "no network namespaces");
  return 0;
}

static uint64_t hold_perf(void) {
  struct perf_event_attr attributes = {
      .type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_TASK_CLOCK};
  int fd = need(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0), "no perf events");
  void* ring = mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  VICTIM_CHECK(ring != MAP_FAILED, "mapping a perf event");
  return (uint64_t)fd;
}

// A device's memory: a perf ring buffer whose descriptor is closed is a mapping and nothing else.
static uint64_t hold_device_mapping(void) {
  int fd = (int)hold_perf();
  void* ring = mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (ring == MAP_FAILED) {
    victim_skip("no mapping of a device");
  }
  close(fd);
  return (uint64_t)ring;
}

static uint64_t hold_lease(void) {
  char path[PATH_MAX];
  victim_path(path, sizeof path, "leased");
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  need(fcntl(fd, F_SETLEASE, F_WRLCK), "no leases");
  signal(SIGIO, SIG_IGN);
  return (uint64_t)fd;
}

static uint64_t hold_userfaultfd(void) {
  int fd = need(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), "no userfaultfd");
  struct uffdio_api api = {.api = UFFD_API};
  need(ioctl(fd, UFFDIO_API, &api), "no userfaultfd");
  void* at = mmap(NULL, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_register range = {{(uint64_t)at, 4 * kPage}, UFFDIO_REGISTER_MODE_MISSING, 0};
  need(ioctl(fd, UFFDIO_REGISTER, &range), "no userfaultfd");
  return (uint64_t)fd;
}

static uint64_t hold_bpf(void) {
  union bpf_attr attributes;
  memset(&attributes, 0, sizeof attributes);
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = 4;
  attributes.value_size = 8;
  attributes.max_entries = 1;
  return (uint64_t)need(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes), "no BPF");
}

static uint64_t hold_fanotify(void) {
  return (uint64_t)need(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY), "no fanotify");
}

static uint64_t hold_netlink(void) {
  return (uint64_t)need(socket(AF_NETLINK, SOCK_RAW, 0), "no netlink");
}

static uint64_t hold_packet_socket(void) {
  return (uint64_t)need(socket(AF_PACKET, SOCK_RAW, 0), "no packet sockets");
}

static uint64_t hold_outside_socket(void) {
  // The other end of this pair is in a process that leaves the tree.
  int ends[2];
  need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "no socket pair");
  pid_t middle = fork();
  if (middle == 0) {
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, 0);
      close(ends[0]);
      close(STDOUT_FILENO);  // whoever waits for our output need not wait for this one
      close(STDERR_FILENO);
      char byte;
      while (read(ends[1], &byte, 1) > 0) {
      }
      _exit(0);
    }
    _exit(0);
  }
  waitpid(middle, NULL, 0);
  close(ends[1]);
  return (uint64_t)ends[0];
}

_Noreturn static void check_on(void);

static void* outlive_main(void* unused) {
  (void)unused;
  char path[64];
  char text[64] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
  while (strstr(text, ") Z") == NULL) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = read(fd, text, sizeof text - 1);
    text[size < 0 ? 0 : size] = 0;
    close(fd);
    usleep(1000);
  }
  victim_ready();
  check_on();
}

// Never returns: the process goes on without its main thread.
static uint64_t hold_no_main_thread(void) {
  pthread_t thread;
  need(-pthread_create(&thread, NULL, outlive_main, NULL), "no threads");
  pthread_exit(NULL);
}

static const struct {
  const char* name;
  uint64_t (*hold)(void);
} kinds[] = {{"io_uring", hold_io_uring},
             {"aio", hold_aio},
             {"mq_notify", hold_message_notification},
             {"seccomp", hold_seccomp},
             {"user_namespace", hold_user_namespace},
             {"pid_namespace", hold_pid_namespace},
             {"network_namespace", hold_network_namespace},
             {"perf", hold_perf},
             {"device_mapping", hold_device_mapping},
             {"lease", hold_lease},
             {"userfaultfd", hold_userfaultfd},
             {"bpf", hold_bpf},
             {"fanotify", hold_fanotify},
             {"netlink", hold_netlink},
             {"packet_socket", hold_packet_socket},
             {"outside_socket", hold_outside_socket},
             {"no_main_thread", hold_no_main_thread}};

static void hold(const char* wanted) {
  bool found = false;
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    if (strcmp(kinds[i].name, wanted) == 0) {
      atomic_store(&victim_status->number, kinds[i].hold());
      found = true;
    }
  }
  VICTIM_CHECK(found, "no such kind: %s", wanted);
}

static atomic_bool told;

static void on_signal(int signal) {
  (void)signal;
  atomic_store(&told, true);
}

static const char* wanted = "";

_Noreturn static void check_on(void) {
  for (;;) {
    if (atomic_exchange(&told, false)) hold(wanted);
    victim_round();
    victim_pace();
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  if (argc > 2) wanted = argv[2];
  signal(SIGUSR1, on_signal);
  if (argc <= 3) hold(wanted);
  victim_ready();
  check_on();
}
