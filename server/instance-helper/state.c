/* `state`: what a running container uses: counters of its control groups (both layouts of the kernel) and its network interfaces with addresses and
 * counters, read by netlink inside its network namespace. */
#include "helper.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    NETLINK_BUFFER_BYTES = 64 << 10,
    NETLINK_WAIT_S = 5,
    INTERFACES_MAX = 1024,
    ADDRESSES_MAX = 4096,
};

/* A number from a control file; -1 if there is none. */
static int64_t cgroup_number(struct lxc_container *c, const char *key)
{
    char text[64] = "";
    int n = c->get_cgroup_item(c, key, text, sizeof(text));
    return n > 0 ? strtoll(text, NULL, 10) : -1;
}

static int64_t first_known(int64_t a, int64_t b)
{
    return a >= 0 ? a : b;
}

static int64_t cpu_nanoseconds(struct lxc_container *c)
{
    int64_t v1 = cgroup_number(c, "cpuacct.usage");
    if (v1 >= 0)
        return v1;
    char text[1024] = "";
    if (c->get_cgroup_item(c, "cpu.stat", text, sizeof(text)) <= 0)
        return 0;
    const char *usage = strstr(text, "usage_usec ");
    return usage ? strtoll(usage + strlen("usage_usec "), NULL, 10) * 1000 : 0;
}

static void add_usage(struct lxc_container *c, json_t *out)
{
    int64_t memory = first_known(cgroup_number(c, "memory.current"), cgroup_number(c, "memory.usage_in_bytes"));
    int64_t peak = first_known(cgroup_number(c, "memory.peak"), cgroup_number(c, "memory.max_usage_in_bytes"));
    int64_t swap = cgroup_number(c, "memory.swap.current"), swap_peak = cgroup_number(c, "memory.swap.peak");
    int64_t both = cgroup_number(c, "memory.memsw.usage_in_bytes"), both_peak = cgroup_number(c, "memory.memsw.max_usage_in_bytes");
    if (swap < 0 && both >= memory)
        swap = both - memory;
    if (swap_peak < 0 && both_peak >= peak)
        swap_peak = both_peak - peak;
    json_object_set_new(out, "memory", json_integer(memory > 0 ? memory : 0));
    json_object_set_new(out, "memory_peak", json_integer(peak > 0 ? peak : 0));
    json_object_set_new(out, "swap", json_integer(swap > 0 ? swap : 0));
    json_object_set_new(out, "swap_peak", json_integer(swap_peak > 0 ? swap_peak : 0));
    int64_t processes = cgroup_number(c, "pids.current");
    json_object_set_new(out, "processes", json_integer(processes > 0 ? processes : 0));
    json_object_set_new(out, "cpu", json_integer(cpu_nanoseconds(c)));
}

static const char *type_name(unsigned flags)
{
    if (flags & IFF_LOOPBACK)
        return "loopback";
    if (flags & IFF_POINTOPOINT)
        return "point-to-point";
    return flags & IFF_BROADCAST ? "broadcast" : "unknown";
}

static json_t *counters(const struct rtnl_link_stats64 *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "bytes_received", (json_int_t)s->rx_bytes, "bytes_sent", (json_int_t)s->tx_bytes,
                     "packets_received", (json_int_t)s->rx_packets, "packets_sent", (json_int_t)s->tx_packets, "errors_received",
                     (json_int_t)s->rx_errors, "errors_sent", (json_int_t)s->tx_errors, "packets_dropped_outbound", (json_int_t)s->tx_dropped,
                     "packets_dropped_inbound", (json_int_t)s->rx_dropped);
}

/* One RTM_NEWLINK message. "peer" is the index of the other end of a veth pair in the host's namespace. */
static void add_link(const struct nlmsghdr *head, json_t *network)
{
    const struct ifinfomsg *info = NLMSG_DATA(head);
    const char *name = NULL;
    char mac[18] = "";
    struct rtnl_link_stats64 stats = {0};
    uint32_t mtu = 0, peer = 0;
    bool elsewhere = false;
    int left = (int)IFLA_PAYLOAD(head);
    for (const struct rtattr *a = IFLA_RTA(info); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
        const uint8_t *data = RTA_DATA(a);
        size_t len = RTA_PAYLOAD(a);
        if (a->rta_type == IFLA_IFNAME && memchr(data, 0, len))
            name = (const char *)data;
        else if (a->rta_type == IFLA_ADDRESS && len == 6)
            snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", data[0], data[1], data[2], data[3], data[4], data[5]);
        else if (a->rta_type == IFLA_MTU && len >= sizeof(mtu))
            memcpy(&mtu, data, sizeof(mtu));
        else if (a->rta_type == IFLA_LINK && len >= sizeof(peer))
            memcpy(&peer, data, sizeof(peer));
        else if (a->rta_type == IFLA_LINK_NETNSID)
            elsewhere = true;
        else if (a->rta_type == IFLA_STATS64)
            memcpy(&stats, data, len < sizeof(stats) ? len : sizeof(stats));
    }
    if (!name || json_object_size(network) >= INTERFACES_MAX)
        return;
    json_t *one = json_pack("{s:s, s:s, s:I, s:s, s:s, s:I, s:o, s:o}", "hwaddr", mac, "host_name", "", "mtu", (json_int_t)mtu, "state",
                            info->ifi_flags & IFF_UP ? "up" : "down", "type", type_name(info->ifi_flags), "peer",
                            (json_int_t)(elsewhere ? peer : 0), "counters", counters(&stats), "addresses", json_array());
    if (one)
        json_object_set_new(network, name, one);
}

/* Dumps the links of the current network namespace. */
static int dump_links(json_t *network, struct error *err)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return error_errno(err, errno, "Failed to open netlink");
    struct timeval wait = {NETLINK_WAIT_S, 0};
    struct {
        struct nlmsghdr head;
        struct ifinfomsg info;
    } request = {.head = {.nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 1},
                 .info = {.ifi_family = AF_UNSPEC}};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) < 0 || send(fd, &request, sizeof(request), 0) < 0) {
        error_errno(err, errno, "Failed to ask netlink");
        close(fd);
        return err->code;
    }
    char *buffer = xmalloc(NETLINK_BUFFER_BYTES);
    bool done = false;
    int rc = STATUS_OK;
    while (!done && !rc) {
        ssize_t n = recv(fd, buffer, NETLINK_BUFFER_BYTES, 0);
        if (n <= 0) {
            rc = error_errno(err, n < 0 ? errno : EPIPE, "Failed to read netlink");
            break;
        }
        int left = (int)n;
        for (struct nlmsghdr *head = (struct nlmsghdr *)buffer; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
            if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR)
                done = true;
            else if (head->nlmsg_type == RTM_NEWLINK)
                add_link(head, network);
        }
    }
    free(buffer);
    close(fd);
    return rc;
}

static int prefix_length(const uint8_t *mask, size_t len)
{
    int bits = 0;
    for (size_t i = 0; i < len; i++)
        bits += __builtin_popcount(mask[i]);
    return bits;
}

static void add_address(const struct ifaddrs *one, json_t *network)
{
    json_t *interface = json_object_get(network, one->ifa_name);
    if (!interface || !one->ifa_addr || !one->ifa_netmask)
        return;
    char text[INET6_ADDRSTRLEN], prefix[12];
    const char *family, *scope = "global";
    if (one->ifa_addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)one->ifa_addr, *mask = (const void *)one->ifa_netmask;
        family = "inet";
        uint32_t address = ntohl(in->sin_addr.s_addr);
        scope = address >> 24 == 127 ? "local" : address >> 16 == 0xa9fe ? "link" : "global";
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
        snprintf(prefix, sizeof(prefix), "%d", prefix_length((const uint8_t *)&mask->sin_addr, 4));
    } else if (one->ifa_addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)one->ifa_addr, *mask = (const void *)one->ifa_netmask;
        family = "inet6";
        scope = IN6_IS_ADDR_LOOPBACK(&in->sin6_addr) ? "local" : IN6_IS_ADDR_LINKLOCAL(&in->sin6_addr) ? "link" : "global";
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text));
        snprintf(prefix, sizeof(prefix), "%d", prefix_length((const uint8_t *)&mask->sin6_addr, 16));
    } else {
        return;
    }
    json_t *list = json_object_get(interface, "addresses");
    if (json_array_size(list) < ADDRESSES_MAX)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "family", family, "address", text, "netmask", prefix, "scope", scope));
}

static int add_network(pid_t pid, json_t *network, struct error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
    int ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), theirs = open(path, O_RDONLY | O_CLOEXEC);
    struct ifaddrs *addresses = NULL;
    int rc = STATUS_OK;
    if (ours >= 0 && theirs < 0 && (errno == ENOENT || errno == ESRCH)) { /* it ended or reboots just now: nothing to tell */
        close(ours);
        return STATUS_OK;
    }
    if (ours < 0 || theirs < 0 || setns(theirs, CLONE_NEWNET) < 0)
        rc = error_errno(err, errno, "Failed to enter the container's network");
    if (!rc)
        rc = dump_links(network, err);
    if (!rc && getifaddrs(&addresses) < 0)
        rc = error_errno(err, errno, "Failed to read the container's addresses");
    for (const struct ifaddrs *one = addresses; one && !rc; one = one->ifa_next)
        add_address(one, network);
    if (addresses)
        freeifaddrs(addresses);
    if (!rc && setns(ours, CLONE_NEWNET) < 0)
        rc = error_errno(err, errno, "Failed to leave the container's network");
    const char *name;
    json_t *one;
    json_object_foreach(network, name, one)
    {
        char host_name[IF_NAMESIZE] = "";
        int64_t peer = helper__number(one, "peer", 0);
        if (!rc && peer > 0 && if_indextoname((unsigned)peer, host_name))
            json_object_set_new(one, "host_name", json_string(host_name));
    }
    if (ours >= 0)
        close(ours);
    if (theirs >= 0)
        close(theirs);
    return rc;
}

int helper__state(const json_t *in, json_t *out, struct error *err)
{
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    const char *state = c->state(c);
    pid_t pid = c->init_pid(c);
    json_object_set_new(out, "state", json_string(state ? state : "STOPPED"));
    json_object_set_new(out, "pid", json_integer(pid));
    int rc = STATUS_OK;
    if (pid > 0) {
        json_t *network = json_object();
        add_usage(c, out);
        rc = add_network(pid, network, err);
        json_object_set_new(out, "network", network);
    }
    lxc_container_put(c);
    return rc;
}
