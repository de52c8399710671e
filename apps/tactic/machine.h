// What machine this is, for records and for what is kept of measurements.
#ifndef TACTIC_APPS_MACHINE_H_
#define TACTIC_APPS_MACHINE_H_

#include <string>

namespace tactic::app {

// The processor's name as the kernel gives it; "unknown" where it gives none.
std::string CpuName();

}  // namespace tactic::app

#endif  // TACTIC_APPS_MACHINE_H_
