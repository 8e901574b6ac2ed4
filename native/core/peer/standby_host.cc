#include "core/peer/standby_host.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr int kHandshakeMs = 5000;
constexpr int kOpenMs = 5000;
// Connections that have not said which replica they bring, whoever they are.
constexpr size_t kStrangersMax = 32;
constexpr int kReapMs = 1000;

}  // namespace

StandbyHost::StandbyHost(const StandbyHostOptions& options)
    : clocks_(options.clocks),
      listener_(listen_at(options.host, options.port, port_)),
      stop_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!stop_.valid()) throw SysError::from_errno("eventfd");
  renew(options.credentials);
  thread_ = std::thread([this] { listen(); });
}

StandbyHost::~StandbyHost() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    expected_.clear();
    for (const auto& [token, session] : sessions_) session->drop();
  }
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  thread_.join();
  for (Visitor& visitor : visitors_) visitor.thread.join();
}

void StandbyHost::renew(const NodeCredentials& credentials) {
  auto context = std::make_shared<const TlsContext>(credentials, TlsRole::kServer);
  const std::lock_guard lock(mutex_);
  context_ = std::move(context);
}

void StandbyHost::expect(ExpectedReplica replica) {
  const std::lock_guard lock(mutex_);
  std::string token = replica.token;
  expected_.insert_or_assign(std::move(token), std::move(replica));
}

std::shared_ptr<StandbySession> StandbyHost::session_of(const std::string& token) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(token);
  return found == sessions_.end() ? nullptr : found->second;
}

bool StandbyHost::promote(const std::string& token, bool keep_files) {
  const auto session = session_of(token);
  return session && session->promote(keep_files);
}

void StandbyHost::drop(const std::string& token) {
  {
    const std::lock_guard lock(mutex_);
    expected_.erase(token);
  }
  if (const auto session = session_of(token)) session->drop();
}

void StandbyHost::listen() {
  for (;;) {
    pollfd items[2] = {{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                       {.fd = listener_.get(), .events = POLLIN, .revents = 0}};
    (void)::poll(items, 2, kReapMs);
    if (items[0].revents != 0) return;
    reap();
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) continue;
    {
      const std::lock_guard lock(mutex_);
      if (strangers_ == kStrangersMax) continue;
      ++strangers_;
    }
    Visitor& visitor = visitors_.emplace_back();
    visitor.thread = std::thread([this, &visitor, fd = socket.release()] {
      welcome(UniqueFd(fd));
      visitor.over = true;
    });
  }
}

void StandbyHost::reap() {
  for (Visitor& visitor : visitors_) {
    if (visitor.over) visitor.thread.join();
  }
  visitors_.remove_if([](const Visitor& visitor) { return !visitor.thread.joinable(); });
}

// Whoever is not let in learns nothing, and is nobody's concern.
void StandbyHost::welcome(UniqueFd socket) noexcept {
  try {
    serve(std::move(socket));
  } catch (const std::exception&) {
  }
}

void StandbyHost::serve(UniqueFd socket) {
  // Until it has said what it brings.
  struct Stranger {
    explicit Stranger(StandbyHost& of) : host(of) {}
    ~Stranger() { leave(); }
    void leave() {
      const std::lock_guard lock(host.mutex_);
      if (std::exchange(here, false)) --host.strangers_;
    }
    StandbyHost& host;
    bool here = true;
  } stranger(*this);
  std::shared_ptr<const TlsContext> context;
  {
    const std::lock_guard lock(mutex_);
    context = context_;
  }
  FrameStream stream(TlsStream(std::move(socket), *context, kHandshakeMs));
  stream.send_encoded(PeerFrameType::kGreeting, GreetingMessage{clocks_()});
  stream.flush_within(kOpenMs);
  const PeerFrame first = stream.receive_within(kOpenMs);
  if (first.type != PeerFrameType::kOpen) throw FormatError("the first frame is another");
  const auto open = decode<OpenMessage>(first.body);
  std::shared_ptr<StandbySession> session;
  try {
    ExpectedReplica replica = take(open, stream.peer());
    session =
        std::make_shared<StandbySession>(std::move(replica.options), std::move(replica.events));
    const std::lock_guard lock(mutex_);
    if (stopping_) throw PeerError("the node ends");
    sessions_[open.token] = session;
  } catch (const PeerError& error) {
    stream.send_encoded(PeerFrameType::kRefused, RefusedMessage{error.what()});
    stream.flush_within(kOpenMs);
    throw;
  }
  stranger.leave();
  session->run(std::move(stream), open);
  const std::lock_guard lock(mutex_);
  sessions_.erase(open.token);
}

ExpectedReplica StandbyHost::take(const OpenMessage& open, const NodeIdentity& peer) {
  const std::lock_guard lock(mutex_);
  const auto found = expected_.find(open.token);
  // The same words for both: a token cannot be guessed at.
  if (found == expected_.end() || found->second.node != peer.id) {
    throw PeerError("no such replica is expected here");
  }
  ExpectedReplica replica = std::move(found->second);
  expected_.erase(found);
  return replica;
}

}  // namespace replpage
