#include "binding/native_group.h"

#include "binding/errors.h"
#include "binding/group_options.h"
#include "binding/reports.h"

namespace replpage::binding {

Napi::Function NativeGroup::define(Napi::Env env) {
  return DefineClass(
      env, "NativeGroup",
      {InstanceMethod<&NativeGroup::start>("start"), InstanceMethod<&NativeGroup::epoch>("epoch"),
       InstanceMethod<&NativeGroup::page>("page"), InstanceMethod<&NativeGroup::inspect>("inspect"),
       InstanceMethod<&NativeGroup::checkpoint>("checkpoint"),
       InstanceMethod<&NativeGroup::promote>("promote"), InstanceMethod<&NativeGroup::join>("join"),
       InstanceMethod<&NativeGroup::drill>("drill"),
       InstanceMethod<&NativeGroup::leave_out>("leaveOut"),
       InstanceMethod<&NativeGroup::recorded>("recorded"),
       InstanceMethod<&NativeGroup::stop>("stop"),
       InstanceMethod<&NativeGroup::counters>("counters"),
       InstanceMethod<&NativeGroup::parts>("parts")});
}

NativeGroup::NativeGroup(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeGroup>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() != 2 || !info[0].IsObject() || !info[1].IsFunction()) {
    throw Napi::TypeError::New(env, "NativeGroup takes options and a listener");
  }
  GroupOptions options = read_group_options(info[0].As<Napi::Object>());
  control_socket_ = options.control_socket;
  listener_ = Napi::Persistent(info[1].As<Napi::Function>());
  to_main_ = Napi::ThreadSafeFunction::New(
      env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "replpage group", 0, 1);
  // Sleeping groups do not keep the event loop alive; the daemon's server does.
  to_main_.Unref(env);
  session_ = std::make_unique<GroupSession>(std::move(options), static_cast<GroupEvents&>(*this));
  worker_ = std::thread([this] { jobs_.run_until_closed(); });
  // Hooks run last in, first out: this one while the thread-safe function still lives, which the
  // end of the program frees before it finalizes objects.
  at_exit_ = info.Env().AddCleanupHook(&NativeGroup::end_with_program, this);
}

NativeGroup::~NativeGroup() {
  if (worker_.joinable() && !at_exit_.IsEmpty()) at_exit_.Remove(Env());
  shut_down();
  *self_ = nullptr;
}

void NativeGroup::end_with_program(NativeGroup* group) { group->shut_down(); }

void NativeGroup::shut_down() {
  if (!worker_.joinable()) return;
  session_->interrupt();
  jobs_.close();
  worker_.join();
  session_.reset();
  to_main_.Release();
}

Napi::Value NativeGroup::run(Napi::Env env, std::function<MakeValue(GroupSession&)> work) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  // The object stays alive, and the loop running, until the promise is settled.
  Ref();
  to_main_.Ref(env);
  jobs_.post([this, deferred, work = std::move(work)] {
    MakeValue make_value;
    std::exception_ptr failure;
    try {
      make_value = work(*session_);
    } catch (...) {
      failure = std::current_exception();
    }
    to_main_.NonBlockingCall([this, deferred, make_value, failure](Napi::Env main, Napi::Function) {
      const Napi::HandleScope scope(main);
      if (failure) {
        deferred->Reject(to_error(main, failure).Value());
      } else {
        deferred->Resolve(make_value(main));
      }
      to_main_.Unref(main);
      Unref();
    });
  });
  return deferred->Promise();
}

Napi::Value NativeGroup::start(const Napi::CallbackInfo& info) {
  return run(info.Env(), [](GroupSession& session) -> MakeValue {
    return [report = session.start()](Napi::Env env) { return to_object(env, report); };
  });
}

Napi::Value NativeGroup::epoch(const Napi::CallbackInfo& info) {
  return run(info.Env(), [](GroupSession& session) -> MakeValue {
    return [stats = session.epoch()](Napi::Env env) { return to_object(env, stats); };
  });
}

Napi::Value NativeGroup::page(const Napi::CallbackInfo& info) {
  const PagingOrder order = read_paging_order(info[0].As<Napi::Object>());
  return run(info.Env(), [order](GroupSession& session) -> MakeValue {
    return [report = session.page(order)](Napi::Env env) { return to_object(env, report); };
  });
}

Napi::Value NativeGroup::inspect(const Napi::CallbackInfo& info) {
  const size_t cells = info[0].ToNumber().Uint32Value();
  return run(info.Env(), [cells](GroupSession& session) -> MakeValue {
    return [mappings = session.inspect(cells)](Napi::Env env) { return to_array(env, mappings); };
  });
}

Napi::Value NativeGroup::checkpoint(const Napi::CallbackInfo& info) {
  const auto request = std::make_shared<const CheckpointRequest>(
      read_checkpoint_request(info[0].As<Napi::Object>()));
  return run(info.Env(), [request](GroupSession& session) -> MakeValue {
    return
        [report = session.checkpoint(*request)](Napi::Env env) { return to_object(env, report); };
  });
}

Napi::Value NativeGroup::promote(const Napi::CallbackInfo& info) {
  std::optional<std::string> node;
  if (info[0].IsString()) node = info[0].As<Napi::String>().Utf8Value();
  session_->hurry();
  return run(info.Env(), [this, node](GroupSession& session) -> MakeValue {
    return [this, report = session.promote(node ? &*node : nullptr)](Napi::Env env) {
      return to_object(env, report, control_socket_);
    };
  });
}

// (rank, home): false when one is on its way.
Napi::Value NativeGroup::join(const Napi::CallbackInfo& info) {
  const size_t rank = info[0].ToNumber().Uint32Value();
  const GroupOptions& options = session_->options();
  ReplicaHome home = read_home(info[1].As<Napi::Object>(), options, options.pid);
  return Napi::Boolean::New(info.Env(), session_->join(rank, std::move(home)));
}

// (name of the drill, home, microseconds): false when another replica is on its way.
Napi::Value NativeGroup::drill(const Napi::CallbackInfo& info) {
  const GroupOptions& options = session_->options();
  ReplicaOptions drill = options;
  const std::string name = info[0].ToString().Utf8Value();
  drill.drill = true;
  drill.control_socket.replace(drill.control_socket.rfind('/') + 1, drill.name.size(), name);
  drill.name = name;
  ReplicaHome home = read_home(info[1].As<Napi::Object>(), drill, options.pid);
  const auto run_us = static_cast<uint64_t>(info[2].ToNumber().Int64Value());
  return Napi::Boolean::New(info.Env(), session_->drill(drill, std::move(home), run_us));
}

// (node, why)
Napi::Value NativeGroup::leave_out(const Napi::CallbackInfo& info) {
  session_->leave_out(info[0].ToString().Utf8Value(), info[1].ToString().Utf8Value());
  return info.Env().Undefined();
}

Napi::Value NativeGroup::recorded(const Napi::CallbackInfo& info) {
  session_->recorded(info[0].ToString().Utf8Value());
  return info.Env().Undefined();
}

Napi::Value NativeGroup::stop(const Napi::CallbackInfo& info) {
  // A copy that takes long must not be waited for.
  session_->interrupt();
  return run(info.Env(), [](GroupSession& session) -> MakeValue {
    return [loss = session.stop()](Napi::Env env) { return Napi::String::New(env, loss); };
  });
}

Napi::Value NativeGroup::counters(const Napi::CallbackInfo& info) {
  return to_object(info.Env(), session_->trace_counters());
}

Napi::Value NativeGroup::parts(const Napi::CallbackInfo& info) {
  return to_object(info.Env(), session_->replica_parts());
}

void NativeGroup::emit(std::function<Napi::Object(Napi::Env)> make_event) {
  to_main_.NonBlockingCall(
      [self = self_, make_event = std::move(make_event)](Napi::Env env, Napi::Function) {
        if (*self == nullptr) return;
        const Napi::HandleScope scope(env);
        (*self)->listener_.Call({make_event(env)});
      });
}

void NativeGroup::on_progress(uint64_t bytes, uint64_t bytes_total) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "progress");
    event.Set("bytes", static_cast<double>(bytes));
    event.Set("bytesTotal", static_cast<double>(bytes_total));
    return event;
  });
}

void NativeGroup::on_died(DeathCause cause, int signal, int status) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "died");
    event.Set("cause", name_of(cause));
    event.Set("signal", signal);
    event.Set("status", status);
    return event;
  });
}

void NativeGroup::on_promoted(const PromotionReport& report) {
  emit([socket = control_socket_, report](Napi::Env env) {
    Napi::Object event = to_object(env, report, socket);
    event.Set("type", "promoted");
    return event;
  });
}

void NativeGroup::on_drained(uint64_t pages, uint64_t took_us) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "drained");
    event.Set("pages", static_cast<double>(pages));
    event.Set("us", static_cast<double>(took_us));
    return event;
  });
}

void NativeGroup::on_ended(const std::string& reason, int signal, int status) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "ended");
    event.Set("reason", reason);
    event.Set("signal", signal);
    event.Set("status", status);
    return event;
  });
}

void NativeGroup::on_replica_out(const std::string& node, const std::string& why) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "replicaOut");
    event.Set("node", node);
    event.Set("why", why);
    return event;
  });
}

void NativeGroup::on_drilled(const std::string& node, uint64_t epoch, uint64_t compared,
                             const DrilledMessage& message) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "drilled");
    event.Set("node", node);
    event.Set("epoch", static_cast<double>(epoch));
    event.Set("problem", message.problem);
    event.Set("promoteUs", static_cast<double>(message.promote_us));
    event.Set("comparedPages", static_cast<double>(compared));
    event.Set("threads", message.threads);
    event.Set("calls", message.calls);
    return event;
  });
}

void NativeGroup::on_replica_in_sync(const std::string& node, uint64_t epoch) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "replicaInSync");
    event.Set("node", node);
    event.Set("epoch", static_cast<double>(epoch));
    return event;
  });
}

void NativeGroup::on_unprotected(const std::string& reason) {
  emit([=](Napi::Env env) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", "unprotected");
    event.Set("reason", reason);
    return event;
  });
}

}  // namespace replpage::binding
