// A server whose second thread ends the main one before it crashes, as redis does when another
// thread than the main one gets a fatal signal. The main thread connects to its own listening
// socket for ever. SIGUSR1: the crash.
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include "victim.h"

static pthread_t main_thread;

static void crash(int signal) {
  (void)signal;
  pthread_cancel(main_thread);
  pthread_join(main_thread, NULL);
  raise(SIGSEGV);
}

static void* wait_for_signal(void* unused) {
  // Without pidfds of threads (Linux 6.9) a promotion cannot have the listening socket.
  if (syscall(SYS_pidfd_open, gettid(), O_EXCL) < 0)
    victim_skip("this kernel has no thread pidfds");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  victim_ready();
  for (;;) pause();
  return unused;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  main_thread = pthread_self();
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  VICTIM_CHECK(bind(listener, (struct sockaddr*)&address, size) == 0, "bind");
  VICTIM_CHECK(listen(listener, 16) == 0, "listen");
  VICTIM_CHECK(getsockname(listener, (struct sockaddr*)&address, &size) == 0, "getsockname");
  signal(SIGUSR1, crash);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  pthread_t thread;
  VICTIM_CHECK(pthread_create(&thread, NULL, wait_for_signal, NULL) == 0, "no thread");
  for (;;) {
    const int client = socket(AF_INET, SOCK_STREAM, 0);
    const bool connected = connect(client, (struct sockaddr*)&address, size) == 0;
    VICTIM_CHECK(connected || errno != ECONNREFUSED, "nobody listens any more");
    // The connection of the moment of the crash is reset.
    const int accepted = accept(listener, NULL, NULL);
    if (accepted >= 0) {
      victim_round();
      close(accepted);
    }
    close(client);
    victim_pace();
  }
}
