// Where other nodes bring their replicas: a port, and the replicas that are expected there.
//
// Who may come was agreed on over the nodes' control connection, which ends with a token. A
// connection is believed when TLS has shown that it is of the node that the token was made for.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/peer/standby_session.h"

namespace replpage {

struct StandbyHostOptions {
  std::string host;   // address to listen on
  uint16_t port = 0;  // 0: any that is free
  NodeCredentials credentials;
  std::function<ClockReadings()> clocks = read_clocks;  // of this machine
};

struct ExpectedReplica {
  std::string token;
  std::string node;  // id of the primary's node
  StandbyOptions options;
  StandbyEvents events;
};

class StandbyHost {
 public:
  // Listens. Throws SysError, PeerError.
  explicit StandbyHost(const StandbyHostOptions& options);
  // Drops all replicas that were not promoted.
  ~StandbyHost();
  StandbyHost(const StandbyHost&) = delete;
  StandbyHost& operator=(const StandbyHost&) = delete;

  [[nodiscard]] uint16_t port() const { return port_; }

  // For connections to come; those that stand keep theirs. Throws PeerError.
  void renew(const NodeCredentials& credentials);

  // May be brought once, until drop().
  void expect(ExpectedReplica replica);
  // See StandbySession.
  bool promote(const std::string& token, bool keep_files);
  void drop(const std::string& token);

 private:
  struct Visitor {
    std::thread thread;
    std::atomic<bool> over = false;
  };
  void listen();
  void reap();
  void welcome(UniqueFd socket) noexcept;
  void serve(UniqueFd socket);
  ExpectedReplica take(const OpenMessage& open, const NodeIdentity& peer);
  std::shared_ptr<StandbySession> session_of(const std::string& token);

  const std::function<ClockReadings()> clocks_;
  uint16_t port_ = 0;
  UniqueFd listener_, stop_;
  std::mutex mutex_;
  bool stopping_ = false;
  std::shared_ptr<const TlsContext> context_;
  std::map<std::string, ExpectedReplica> expected_;
  std::map<std::string, std::shared_ptr<StandbySession>> sessions_;
  size_t strangers_ = 0;
  std::list<Visitor> visitors_;  // the listener's thread alone
  std::thread thread_;
};

}  // namespace replpage
