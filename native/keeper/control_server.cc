#include "keeper/control_server.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <exception>

namespace replpage {

ControlServer::ControlServer(UniqueFd listener, Handlers handlers)
    : listener_(std::move(listener)), handlers_(std::move(handlers)) {}

void ControlServer::add_polled(std::vector<pollfd>& items) const {
  // At the limit new clients wait in the socket's queue.
  if (clients_.size() < kClientsMax) {
    items.push_back({.fd = listener_.get(), .events = POLLIN, .revents = 0});
  }
  for (const auto& [fd, client] : clients_) {
    items.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  }
}

void ControlServer::handle(const std::vector<pollfd>& items) {
  for (const pollfd& item : items) {
    if (item.revents == 0) continue;
    if (item.fd == listener_.get()) {
      accept_one();
    } else if (const auto found = clients_.find(item.fd); found != clients_.end()) {
      if (!serve(found->second)) clients_.erase(found);
    }
  }
}

void ControlServer::accept_one() {
  UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) return;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  const int number = fd.get();
  clients_.emplace(number, Client{.fd = std::move(fd), .line = {}, .is_root = peer.uid == 0});
}

bool ControlServer::serve(Client& client) {
  std::array<char, kLineBytesMax> bytes{};
  const ssize_t got = ::recv(client.fd.get(), bytes.data(), bytes.size(), 0);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  client.line.append(bytes.data(), static_cast<size_t>(got));
  for (size_t end; (end = client.line.find('\n')) != std::string::npos;) {
    const std::string command = client.line.substr(0, end);
    client.line.erase(0, end + 1);
    if (!obey(client, command)) return false;
  }
  return client.line.size() <= kLineBytesMax;
}

bool ControlServer::obey(Client& client, const std::string& command) {
  if (command == "end" && client.is_root) {
    handlers_.end();
    return answer(client);
  }
  if ((command == "refill off" || command == "refill on") && client.is_root) {
    handlers_.hold_refill(command == "refill off");
    return answer(client);
  }
  if (command == "wait") {
    client.waits = true;
    return !ended_ || answer(client);
  }
  return command == "status" && answer(client);
}

bool ControlServer::answer(const Client& client) {
  std::string line;
  try {
    line = handlers_.status() + "\n";
  } catch (const std::exception&) {  // a client is not worth the group
    return false;
  }
  const ssize_t sent =
      ::send(client.fd.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  // A client that does not read its answers is dropped.
  if (sent != static_cast<ssize_t>(line.size())) return false;
  if (ended_) end_seen_ = true;
  return true;
}

void ControlServer::announce_end() {
  ended_ = true;
  for (const auto& [fd, client] : clients_) {
    if (client.waits) (void)answer(client);
  }
}

}  // namespace replpage
