// The keeper's control socket: one command a line, one JSON line back.
//   status   {"state", "pid", "hostPid", "epoch", "generation", ...}
//   wait     the same, when the group has ended
//   end      kills the group; root only
#pragma once

#include <poll.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace replpage {

class ControlServer {
 public:
  static constexpr size_t kClientsMax = 16;
  static constexpr size_t kLineBytesMax = 64;

  struct Handlers {
    std::function<std::string()> status;  // one line of JSON without its end
    std::function<void()> end;
    std::function<void(bool)> hold_refill;
  };

  ControlServer(UniqueFd listener, Handlers handlers);

  // Appends what is to be polled.
  void add_polled(std::vector<pollfd>& items) const;
  // Handles those of `items` that are its own. Never blocks, never throws for a client's sake.
  void handle(const std::vector<pollfd>& items);
  // The group has ended: answers those who wait, and later ones at once.
  void announce_end();

  // Clients were told of the end.
  [[nodiscard]] bool end_was_seen() const { return end_seen_; }

 private:
  struct Client {
    UniqueFd fd;
    std::string line;
    bool waits = false;
    bool is_root = false;
  };
  void accept_one();
  // False: the client is to be dropped.
  bool serve(Client& client);
  bool obey(Client& client, const std::string& command);
  bool answer(const Client& client);

  UniqueFd listener_;
  Handlers handlers_;
  std::map<int, Client> clients_;
  bool ended_ = false;
  bool end_seen_ = false;
};

}  // namespace replpage
