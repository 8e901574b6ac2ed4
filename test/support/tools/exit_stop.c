// Whether a dying process stays at its exit stop when it is killed once more.
// Usage: exit_stop signal | exit_stop cgroup FOLDER
//   signal: the second kill is a SIGKILL; cgroup: "1" into cgroup.kill of the control group FOLDER,
//   which is made, and used for the first kill too.
// Prints what it found; status 0: all threads stayed and memory is whole, 1: not so, 2: no answer.
#include <dirent.h>
#include <elf.h>
#include <err.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { threads = 4, memory_bytes = 8 << 20, hold_ms = 500, limit_s = 60 };

static unsigned char* memory;

static void* spin_or_sleep(void* argument) {
  volatile unsigned long turns = 0;
  for (;;) {
    turns++;
    if (argument == NULL) pause();
  }
  return NULL;
}

static void victim(int ready) {
  for (long i = 1; i < threads; i++) {
    pthread_t thread;
    // One that computes, the others asleep.
    if (pthread_create(&thread, NULL, spin_or_sleep, i == 1 ? (void*)i : NULL) != 0) _exit(3);
  }
  if (write(ready, "r", 1) != 1) _exit(3);
  for (;;) pause();
}

static int threads_of(pid_t pid, pid_t* tids) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR* folder = opendir(path);
  int count = 0;
  for (struct dirent* entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] != '.' && count < threads) tids[count++] = atoi(entry->d_name);
  }
  if (folder != NULL) closedir(folder);
  return count;
}

static void write_file(const char* folder, const char* name, const char* text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, "w");
  if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) err(2, "%s", path);
}

static void kill_it(pid_t pid, const char* cgroup) {
  if (cgroup != NULL) {
    write_file(cgroup, "cgroup.kill", "1");
  } else if (kill(pid, SIGKILL) != 0) {
    err(2, "kill");
  }
}

static int stopped_threads(pid_t pid, const pid_t* tids) {
  int count = 0;
  for (int i = 0; i < threads; i++) {
    char path[64], line[512] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tids[i]);
    FILE* file = fopen(path, "r");
    if (file == NULL) continue;
    if (fgets(line, sizeof line, file) == NULL) line[0] = '\0';
    fclose(file);
    const char* end = strrchr(line, ')');
    if (end != NULL && end[2] == 't') count++;
  }
  return count;
}

static int memory_is_whole(pid_t pid) {
  unsigned char* copy = malloc(memory_bytes);
  struct iovec local = {copy, memory_bytes}, remote = {memory, memory_bytes};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0) == memory_bytes &&
         memcmp(copy, memory, memory_bytes) == 0;
}

static int registers_are_readable(const pid_t* tids) {
  for (int i = 0; i < threads; i++) {
    struct user_regs_struct registers;
    struct iovec space = {&registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, tids[i], (void*)NT_PRSTATUS, &space) != 0) return 0;
  }
  return 1;
}

int main(int argc, char** argv) {
  const char* cgroup = argc > 2 && strcmp(argv[1], "cgroup") == 0 ? argv[2] : NULL;
  if (cgroup == NULL && (argc != 2 || strcmp(argv[1], "signal") != 0)) errx(2, "usage");
  alarm(limit_s);
  memory = malloc(memory_bytes);
  for (int i = 0; i < memory_bytes; i++) memory[i] = (unsigned char)(i * 31 >> 3);
  int ready[2];
  if (pipe(ready) != 0) err(2, "pipe");
  pid_t pid = fork();
  if (pid == 0) victim(ready[1]);
  char byte;
  if (read(ready[0], &byte, 1) != 1) err(2, "read");
  if (cgroup != NULL) {
    char text[16];
    if (mkdir(cgroup, 0755) != 0) err(2, "%s", cgroup);
    snprintf(text, sizeof text, "%d", pid);
    write_file(cgroup, "cgroup.procs", text);
  }
  pid_t tids[threads];
  if (threads_of(pid, tids) != threads) errx(2, "not all threads are there");
  for (int i = 0; i < threads; i++) {
    if (ptrace(PTRACE_SEIZE, tids[i], NULL, (void*)PTRACE_O_TRACEEXIT) != 0) err(2, "seize");
  }
  kill_it(pid, cgroup);
  for (int i = 0; i < threads; i++) {
    int status;
    if (waitpid(tids[i], &status, __WALL) != tids[i]) err(2, "waitpid");
    if (status >> 8 != (SIGTRAP | PTRACE_EVENT_EXIT << 8)) errx(1, "no exit stop: %x", status);
  }
  kill_it(pid, cgroup);
  usleep(hold_ms * 1000);
  int held = stopped_threads(pid, tids), whole = memory_is_whole(pid);
  int readable = registers_are_readable(tids);
  for (int i = 0; i < threads; i++) ptrace(PTRACE_CONT, tids[i], NULL, NULL);
  while (waitpid(-1, NULL, __WALL) > 0) continue;
  if (cgroup != NULL) rmdir(cgroup);
  printf("%d of %d threads stay at their exit stop, memory %s, registers %s\n", held, threads,
         whole ? "whole" : "gone", readable ? "readable" : "gone");
  return held == threads && whole && readable ? 0 : 1;
}
