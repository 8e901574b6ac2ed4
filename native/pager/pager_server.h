// Serves the requests of one worker thread until it hangs up.
#pragma once

namespace replpage {

// `channel`: number of the open descriptor. Returns the exit code.
int run_pager(int channel);

}  // namespace replpage
