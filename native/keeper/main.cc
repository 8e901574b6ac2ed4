// replpage-keeper: keeps a group's replica. Started by the daemon with one descriptor, a channel.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "keeper/holder.h"

int main(int argc, char** argv) {
  if (argc != 3 || std::strcmp(argv[1], "--hold") != 0) {
    std::fputs("replpage-keeper is started by replpage daemon\n", stderr);
    return 2;
  }
  return replpage::run_holder(std::atoi(argv[2]));
}
