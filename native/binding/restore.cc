#include "binding/restore.h"

#include "binding/group_options.h"
#include "binding/reports.h"
#include "binding/run_apart.h"
#include "core/checkpoint/checkpoint_removal.h"
#include "core/checkpoint/checkpoint_restore.h"

namespace replpage::binding {

Napi::Value find_checkpoint(const Napi::CallbackInfo& info) {
  auto place = read_checkpoint_place(info[0].As<Napi::Object>());
  return run_apart(info.Env(),
                   [place = std::move(place)](const std::stop_token& stop) -> MakeValue {
                     const CheckpointReader reader(place, stop);
                     return [id = reader.id(), manifest = reader.manifest()](Napi::Env env) {
                       return to_object(env, id, manifest);
                     };
                   });
}

Napi::Value remove_found(const Napi::CallbackInfo& info) {
  auto place = read_checkpoint_place(info[0].As<Napi::Object>());
  return run_apart(info.Env(), [place = std::move(place)]() -> MakeValue {
    return [done = remove_checkpoints(place)](Napi::Env env) -> Napi::Value {
      Napi::Object report = Napi::Object::New(env);
      report.Set("ids", done.id);
      report.Set("freedBytes", static_cast<double>(done.bytes));
      return report;
    };
  });
}

Napi::Value restore(const Napi::CallbackInfo& info) {
  auto options = read_restore_options(info[0].As<Napi::Object>());
  return run_apart(
      info.Env(), [options = std::move(options)](const std::stop_token& stop) -> MakeValue {
        return [report = restore_checkpoint(options, stop), socket = options.control_socket](
                   Napi::Env env) { return to_object(env, report, socket); };
      });
}

}  // namespace replpage::binding
