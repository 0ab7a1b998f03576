/* NICs that name a managed network, against the database. Runs inside a transaction. */
#ifndef COVEY_SERVER_NETWORKS_DEVICES_H
#define COVEY_SERVER_NETWORKS_DEVICES_H

#include "server/instances/settings.h"

/* Every `network` of a NIC exists and is Created; fixed addresses lie in its subnet, are given out there, and are no other instance's. `instance`: whose devices
 * they are, 0 = nobody's yet. `Invalid devices: Device validation failed for "eth0": …`. */
int networks_check_devices(struct sql *sql, const struct device_set *devices, int64_t instance, struct error *err);

#endif
