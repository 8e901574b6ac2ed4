// Process 1 of a node: runs commands for the host, over a virtio-serial port, and reaps orphans.
// Lines, each with a number that the host chose:
//   host:   hello N                      (of a new connection: what was asked before is forgotten)
//           run N BASE64                 (a script for /bin/sh)
//           kill N SIGNAL                (to the command's process group)
//   agent:  hello N | out N BASE64 | err N BASE64 | end N STATUS     (STATUS as a shell gives it)
// Commands run beside each other, so that one that hangs (on a file server, say) blocks no other.
// `end` comes when the command itself has ended, whoever still has its output open.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { commands_max = 64, line_max = 1 << 20, piece = 3 * 1024, wait_ms = 100 };

struct command {
  long number;  // 0: not in use
  pid_t pid;    // 0: has ended
  int status;
  int output[2];  // out, err; -1: closed
};

static struct command commands[commands_max];
static int port = -1;
static char line[line_max];
static size_t line_length;
static long session;

static void console(const char* text) {
  int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return;
  dprintf(fd, "replpage-vm: %s\n", text);
  close(fd);
}

// The port that the host calls "agent". It may be opened only once: one descriptor for both ways.
static int open_port(void) {
  const char* folder = "/sys/class/virtio-ports";
  DIR* ports = opendir(folder);
  if (ports == NULL) return -1;
  int found = -1;
  for (struct dirent* entry; found < 0 && (entry = readdir(ports)) != NULL;) {
    char path[512], name[32] = "";
    snprintf(path, sizeof path, "%s/%s/name", folder, entry->d_name);
    FILE* file = fopen(path, "re");
    if (file == NULL) continue;
    if (fgets(name, sizeof name, file) != NULL && strcmp(name, "agent\n") == 0) {
      snprintf(path, sizeof path, "/dev/%s", entry->d_name);
      found = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    }
    fclose(file);
  }
  closedir(ports);
  return found;
}

// Whole lines only. Gives up where the host is not connected: nobody wants the line then.
static void send_all(const char* text, size_t length) {
  while (length > 0) {
    ssize_t sent = write(port, text, length);
    if (sent > 0) {
      text += sent;
      length -= (size_t)sent;
      continue;
    }
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return;
    struct pollfd ready = {.fd = port, .events = POLLOUT};
    if (poll(&ready, 1, wait_ms) > 0 && (ready.revents & POLLHUP)) return;
  }
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static size_t encode(const unsigned char* from, size_t length, char* to) {
  char* start = to;
  for (size_t i = 0; i < length; i += 3) {
    unsigned value = (unsigned)from[i] << 16;
    if (i + 1 < length) value |= (unsigned)from[i + 1] << 8;
    if (i + 2 < length) value |= from[i + 2];
    *to++ = alphabet[value >> 18];
    *to++ = alphabet[value >> 12 & 63];
    *to++ = i + 1 < length ? alphabet[value >> 6 & 63] : '=';
    *to++ = i + 2 < length ? alphabet[value & 63] : '=';
  }
  return (size_t)(to - start);
}

// In place: what comes out is shorter than what goes in.
static void decode(char* text) {
  char* to = text;
  unsigned value = 0, bits = 0;
  for (const char* from = text; *from != '\0'; from++) {
    const char* found = strchr(alphabet, *from);
    if (found == NULL) continue;
    value = value << 6 | (unsigned)(found - alphabet);
    bits += 6;
    if (bits >= 8) *to++ = (char)(value >> (bits -= 8));
  }
  *to = '\0';
}

static void send_output(const struct command* command, int stream, const void* data,
                        size_t length) {
  static char text[2 * piece + 64];
  int at = snprintf(text, 64, "%s %ld ", stream == 0 ? "out" : "err", command->number);
  size_t end = (size_t)at + encode(data, length, text + at);
  text[end++] = '\n';
  send_all(text, end);
}

// Passes on what is there now; closes the pipe at its end.
static void drain(struct command* command, int stream) {
  unsigned char data[piece];
  for (;;) {
    ssize_t length = read(command->output[stream], data, sizeof data);
    if (length > 0) {
      send_output(command, stream, data, (size_t)length);
      continue;
    }
    if (length < 0 && errno == EAGAIN) return;
    close(command->output[stream]);
    command->output[stream] = -1;
    return;
  }
}

static void finish(struct command* command) {
  for (int stream = 0; stream < 2; stream++) {
    if (command->output[stream] < 0) continue;
    drain(command, stream);
    if (command->output[stream] >= 0) close(command->output[stream]);
  }
  char text[64];
  int length = snprintf(text, sizeof text, "end %ld %d\n", command->number, command->status);
  send_all(text, (size_t)length);
  command->number = 0;
}

static void child(const char* script, int out, int err) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  signal(SIGPIPE, SIG_DFL);
  setsid();
  dup2(open("/dev/null", O_RDONLY), 0);
  dup2(out, 1);
  dup2(err, 2);
  if (chdir("/root") != 0) _exit(126);
  execl("/bin/sh", "sh", "-c", script, (char*)NULL);
  _exit(127);
}

static void run(long number, const char* script) {
  struct command* command = NULL;
  for (int i = 0; i < commands_max && command == NULL; i++) {
    if (commands[i].number == 0) command = &commands[i];
  }
  int out[2], err[2];
  if (command == NULL || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    char text[64];
    send_all(text, (size_t)snprintf(text, sizeof text, "end %ld 125\n", number));
    return;
  }
  pid_t pid = fork();
  if (pid == 0) child(script, out[1], err[1]);
  close(out[1]);
  close(err[1]);
  // The agent's ends only: the command's own must block as pipes do.
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  fcntl(err[0], F_SETFL, O_NONBLOCK);
  *command = (struct command){.number = number, .pid = pid, .output = {out[0], err[0]}};
}

static void forget_all(void) {
  for (int i = 0; i < commands_max; i++) {
    if (commands[i].number == 0) continue;
    for (int stream = 0; stream < 2; stream++) {
      if (commands[i].output[stream] >= 0) close(commands[i].output[stream]);
    }
    commands[i].number = 0;
  }
}

static void take(char* text) {
  long number;
  int at = 0;
  if (sscanf(text, "hello %ld", &number) == 1) {
    forget_all();
    session = number;
    char answer[64];
    send_all(answer, (size_t)snprintf(answer, sizeof answer, "\nhello %ld\n", session));
  } else if (sscanf(text, "run %ld %n", &number, &at) == 1 && at > 0) {
    decode(text + at);
    run(number, text + at);
  } else if (sscanf(text, "kill %ld %d", &number, &at) == 2) {
    for (int i = 0; i < commands_max; i++) {
      if (commands[i].number == number && commands[i].pid > 0) kill(-commands[i].pid, at);
    }
  }
}

static void receive(void) {
  char data[4096];
  ssize_t length = read(port, data, sizeof data);
  if (length <= 0) {
    // Nobody is connected, and the port says so at once, again and again.
    line_length = 0;
    if (length == 0) usleep(20000);
    return;
  }
  for (ssize_t i = 0; i < length; i++) {
    if (data[i] == '\n') {
      line[line_length] = '\0';
      line_length = 0;
      take(line);
    } else if (line_length < sizeof line - 1) {
      line[line_length++] = data[i];
    }
  }
}

static void reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    for (int i = 0; i < commands_max; i++) {
      if (commands[i].number == 0 || commands[i].pid != pid) continue;
      commands[i].pid = 0;
      commands[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      finish(&commands[i]);
    }
  }
}

static void serve(int children) {
  struct pollfd ready[2 + 2 * commands_max];
  struct command* whose[2 + 2 * commands_max];
  int stream[2 + 2 * commands_max];
  int count = 2;
  ready[0] = (struct pollfd){.fd = port, .events = POLLIN};
  ready[1] = (struct pollfd){.fd = children, .events = POLLIN};
  for (int i = 0; i < commands_max; i++) {
    for (int s = 0; s < 2 && commands[i].number != 0; s++) {
      if (commands[i].output[s] < 0) continue;
      whose[count] = &commands[i];
      stream[count] = s;
      ready[count++] = (struct pollfd){.fd = commands[i].output[s], .events = POLLIN};
    }
  }
  if (poll(ready, (nfds_t)count, 1000) <= 0) return;
  for (int i = 2; i < count; i++) {
    if (ready[i].revents != 0) drain(whose[i], stream[i]);
  }
  if (ready[1].revents != 0) {
    struct signalfd_siginfo info;
    while (read(children, &info, sizeof info) > 0) continue;
    reap();
  }
  if (ready[0].revents & (POLLIN | POLLHUP)) receive();
}

int main(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, NULL);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  int children = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  for (int tries = 0; port < 0 && tries < 100; tries++) {
    port = open_port();
    if (port < 0) usleep(50000);
  }
  if (port < 0 || children < 0) {
    console("the agent has no port to the host");
    return 1;
  }
  console("ready");
  for (;;) serve(children);
}
