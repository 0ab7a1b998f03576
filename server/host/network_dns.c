/* The DHCP and DNS server of a bridge: one dnsmasq per network. It makes itself a daemon, so it outlives ours and is taken over at the next start: known
 * by its pid file, its command line and, from then on, a pidfd. A server with other arguments than wanted is replaced. Under networks->lock. */
#include "network_private.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 160, COMMAND_LINE_BYTES_MAX = 64 << 10 };

/* Arguments, owned; ends with NULL. */
struct arguments {
    char *items[ARGUMENTS_MAX + 1];
    size_t count;
};

static void add(struct arguments *list, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct arguments *list, const char *fmt, ...)
{
    va_list args;
    covey_assert(list->count < ARGUMENTS_MAX);
    va_start(args, fmt);
    if (vasprintf(&list->items[list->count++], fmt, args) < 0)
        core_oom();
    va_end(args);
}

static void arguments_free(struct arguments *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
}

/* ---- what it is told ---- */

static void add_ipv4(const struct network *network, struct arguments *list)
{
    struct subnet subnet, first, last;
    char from[SUBNET_TEXT_MAX], to[SUBNET_TEXT_MAX], item[2 * SUBNET_TEXT_MAX];
    if (!network__subnet(network, "ipv4", &subnet))
        return;
    subnet_text(&subnet, false, from);
    add(list, "--listen-address=%s", from);
    if (!network__bool(network, "ipv4.dhcp"))
        return;
    const char *ranges = network__get(network, "ipv4.dhcp.ranges"), *expiry = network__get(network, "ipv4.dhcp.expiry"), *gateway = network__get(network, "ipv4.dhcp.gateway");
    add(list, "--dhcp-no-override");
    add(list, "--dhcp-authoritative");
    if (gateway)
        add(list, "--dhcp-option-force=3,%s", gateway);
    if (!str_eq(network__get(network, "bridge.mtu"), "1500"))
        add(list, "--dhcp-option-force=26,%s", network__get(network, "bridge.mtu"));
    for (const char *at = ranges; network__item(&at, item, sizeof(item));)
        if (!range_parse(item, &first, &last)) {
            subnet_text(&first, false, from);
            subnet_text(&last, false, to);
            add(list, "--dhcp-range=%s,%s,%s", from, to, expiry);
        }
    if (!ranges && subnet.prefix <= 30) { /* all but the network's and the broadcast address; dnsmasq leaves out its own */
        subnet_nth(&subnet, 1, &first);
        subnet_nth(&subnet, -2, &last);
        subnet_text(&first, false, from);
        subnet_text(&last, false, to);
        add(list, "--dhcp-range=%s,%s,%s", from, to, expiry);
    }
}

static void add_ipv6(const struct network *network, struct arguments *list)
{
    struct subnet subnet, first, last;
    char text[SUBNET_TEXT_MAX], to[SUBNET_TEXT_MAX], item[2 * SUBNET_TEXT_MAX];
    if (!network__subnet(network, "ipv6", &subnet))
        return;
    const char *ranges = network__get(network, "ipv6.dhcp.ranges"), *expiry = network__get(network, "ipv6.dhcp.expiry");
    subnet_text(&subnet, false, text);
    add(list, "--listen-address=%s", text);
    add(list, "--enable-ra");
    if (!network__bool(network, "ipv6.dhcp")) {
        add(list, "--dhcp-range=::,constructor:%s,ra-only", network->name);
        return;
    }
    if (!network__bool(network, "ipv6.dhcp.stateful")) {
        add(list, "--dhcp-range=::,constructor:%s,ra-stateless,ra-names", network->name);
        return;
    }
    for (const char *at = ranges; network__item(&at, item, sizeof(item));)
        if (!range_parse(item, &first, &last)) {
            subnet_text(&first, false, text);
            subnet_text(&last, false, to);
            add(list, "--dhcp-range=%s,%s,%u,%s", text, to, subnet.prefix, expiry);
        }
    if (!ranges) {
        subnet_nth(&subnet, 2, &first);
        subnet_nth(&subnet, -1, &last);
        subnet_text(&first, false, text);
        subnet_text(&last, false, to);
        add(list, "--dhcp-range=%s,%s,%u,%s", text, to, subnet.prefix, expiry);
    }
}

static void make_arguments(const struct network *network, struct arguments *list)
{
    const char *domain = network__get(network, "dns.domain"), *search = network__get(network, "dns.search");
    *list = (struct arguments){0};
    add(list, "dnsmasq");
    add(list, "--pid-file=%s/dnsmasq.pid", network->dir); /* second: how a running one is known again */
    add(list, "--conf-file="); /* nothing of the host's own configuration */
    add(list, "--strict-order");
    add(list, "--bind-interfaces");
    add(list, "--except-interface=lo");
    add(list, "--interface=%s", network->name);
    add(list, "--no-ping");
    add(list, "--quiet-dhcp");
    add(list, "--quiet-dhcp6");
    add(list, "--quiet-ra");
    add(list, "--dhcp-rapid-commit");
    add(list, "--dhcp-leasefile=%s/dnsmasq.leases", network->dir);
    add(list, "--dhcp-hostsfile=%s/dnsmasq.hosts", network->dir);
    add_ipv4(network, list);
    add_ipv6(network, list);
    add(list, "--domain=%s", domain);
    add(list, "--local=/%s/", domain);
    if (!str_eq(network__get(network, "dns.mode"), "dynamic"))
        add(list, "--dhcp-ignore-names"); /* managed: names are those of instances (host entries) */
    struct buf domains = {0};
    char item[256];
    for (const char *at = search; network__item(&at, item, sizeof(item));)
        buf_printf(&domains, ",%s", item);
    if (domains.len)
        add(list, "--dhcp-option-force=119%s", domains.data);
    buf_free(&domains);
}

/* ---- the process ---- */

/* Whether `pid` is the server with exactly these arguments (`list`), or any of this network (NULL). */
static bool is_server(const struct network *network, int pid, const struct arguments *list)
{
    char *path = xasprintf("/proc/%d/cmdline", pid), *mark = xasprintf("--pid-file=%s/dnsmasq.pid", network->dir);
    struct buf text = {0}, wanted = {0};
    bool same = file_read(path, COMMAND_LINE_BYTES_MAX, &text, NULL) == STATUS_OK && text.len > 0;
    size_t program = same ? strlen(text.data) + 1 : 0;
    same = same && program < text.len && str_eq(text.data + program, mark);
    for (size_t i = 1; same && list && i < list->count; i++)
        buf_add(&wanted, list->items[i], strlen(list->items[i]) + 1);
    if (same && list)
        same = text.len - program == wanted.len && memcmp(text.data + program, wanted.data, wanted.len) == 0;
    buf_free(&wanted);
    buf_free(&text);
    free(mark);
    free(path);
    return same;
}

static bool alive(const struct network *network)
{
    struct pollfd fd = {network->dns_fd, POLLIN, 0};
    return network->dns_fd >= 0 && poll(&fd, 1, 0) == 0;
}

void dns__forget(struct network *network)
{
    if (network->dns_fd >= 0)
        close(network->dns_fd);
    network->dns_fd = -1;
    network->dns_pid = 0;
}

/* Finds the server that the pid file names. The pidfd comes before the look at the command line: the number cannot go to another process in between. */
static void find(struct network *network)
{
    char *path = xasprintf("%s/dnsmasq.pid", network->dir);
    struct buf text = {0};
    int64_t pid = 0;
    if (!alive(network) && file_read(path, 32, &text, NULL) == STATUS_OK) {
        dns__forget(network);
        text.data[strcspn(text.data, "\n")] = 0;
        int fd = parse_i64(text.data, 2, INT32_MAX, &pid) == 0 ? pidfd_open((pid_t)pid, 0) : -1;
        if (fd >= 0 && is_server(network, (int)pid, NULL)) {
            network->dns_fd = fd;
            network->dns_pid = (int)pid;
        } else if (fd >= 0) {
            close(fd);
        }
    }
    buf_free(&text);
    free(path);
}

void dns__stop(struct network *network)
{
    find(network);
    if (alive(network)) {
        struct pollfd fd = {network->dns_fd, POLLIN, 0};
        pidfd_send_signal(network->dns_fd, SIGTERM, NULL, 0);
        if (poll(&fd, 1, NETWORK_DNS_STOP_MS_MAX) <= 0) {
            pidfd_send_signal(network->dns_fd, SIGKILL, NULL, 0);
            poll(&fd, 1, NETWORK_DNS_STOP_MS_MAX);
        }
    }
    dns__forget(network);
}

void dns__reload(const struct network *network)
{
    if (alive(network))
        pidfd_send_signal(network->dns_fd, SIGHUP, NULL, 0);
}

static int start(struct network *network, const struct arguments *list, struct error *err)
{
    static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", NULL};
    struct process_result result;
    char *pid_file = xasprintf("%s/dnsmasq.pid", network->dir);
    unlink(pid_file);
    network->dns_started = time_mono_ms();
    /* It answers after it has bound its sockets and left for the background; a bad exit tells why it cannot. */
    int rc = process_run((const char *const *)list->items, env, NULL, 4096, NETWORK_DNS_START_MS_MAX, &result, err);
    if (!rc && result.exit_code)
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "Failed to start dnsmasq for network \"%s\": %.*s", network->name, (int)strcspn(result.err.data + strspn(result.err.data, "\n"), "\n"),
                       result.err.data + strspn(result.err.data, "\n"));
    process_result_free(&result);
    if (!rc) {
        find(network);
        if (!alive(network))
            rc = error_set(err, STATUS_INTERNAL, "dnsmasq of network \"%s\" ended at once", network->name);
    }
    if (!rc)
        log_info("network.dns", "network=%s pid=%d", network->name, network->dns_pid);
    free(pid_file);
    return rc;
}

int dns__apply(struct network *network, struct error *err)
{
    struct subnet subnet;
    struct arguments list;
    if (network->type != NETWORK_BRIDGE || (!network__subnet(network, "ipv4", &subnet) && !network__subnet(network, "ipv6", &subnet))) {
        if (network->type == NETWORK_BRIDGE)
            dns__stop(network);
        return STATUS_OK;
    }
    char *hosts = xasprintf("%s/dnsmasq.hosts", network->dir);
    int rc = dir_make(hosts, 0755, err); /* it reads them as an unprivileged user */
    make_arguments(network, &list);
    find(network);
    if (!rc && (!alive(network) || !is_server(network, network->dns_pid, &list))) {
        dns__stop(network);
        rc = start(network, &list, err);
    }
    arguments_free(&list);
    free(hosts);
    return rc;
}

/* ---- leases ---- */

/* The hardware address inside a DUID of the two kinds that have one; false otherwise. */
static bool duid_hwaddr(const char *duid, char out[18])
{
    size_t skip = str_prefix(duid, "00:01:00:01:") ? 24 : str_prefix(duid, "00:03:00:01:") ? 12 : 0;
    if (!skip || strlen(duid) != skip + 17)
        return false;
    snprintf(out, 18, "%s", duid + skip);
    return true;
}

/* "<expiry> <hwaddr or iaid> <address> <name or *> <client id or duid>" a line. */
static bool lease_line(char *line, Covey__V1__NetworkLease *lease, struct arena *arena)
{
    char *field[5], *save = NULL, mac[18] = "";
    size_t count = 0;
    for (char *one = strtok_r(line, " ", &save); one && count < 5; one = strtok_r(NULL, " ", &save))
        field[count++] = one;
    struct subnet address;
    if (count < 5 || address_parse(field[2], &address))
        return false; /* the server's own "duid" line, too */
    int64_t expiry;
    if (parse_i64(field[0], 0, INT64_MAX, &expiry) || (expiry && expiry < time_unix_ns() / 1000000000))
        return false;
    bool v6 = strchr(field[2], ':') != NULL;
    if (v6 && !duid_hwaddr(field[4], mac))
        mac[0] = 0;
    covey__v1__network_lease__init(lease);
    lease->hwaddr = arena_strdup(arena, v6 ? mac : field[1]);
    lease->address = arena_strdup(arena, field[2]);
    lease->hostname = arena_strdup(arena, str_eq(field[3], "*") ? "" : field[3]);
    lease->type = (char *)"dynamic";
    return true;
}

int dns__leases(const struct network *network, struct arena *arena, Covey__V1__ListNetworkLeasesResponse *out, struct error *err)
{
    char *path = xasprintf("%s/dnsmasq.leases", network->dir), *save = NULL;
    struct buf text = {0};
    int rc = file_read(path, NETWORK_LEASE_FILE_BYTES_MAX, &text, err);
    if (rc == STATUS_NOT_FOUND) /* nobody has asked yet */
        rc = STATUS_OK;
    size_t lines = 1;
    for (const char *c = text.data; !rc && c && *c; c++)
        lines += *c == '\n';
    out->leases = arena_alloc(arena, (lines < NETWORK_LEASES_MAX ? lines : NETWORK_LEASES_MAX) * sizeof(*out->leases));
    for (char *line = !rc && text.data ? strtok_r(text.data, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
        if (out->n_leases == NETWORK_LEASES_MAX) {
            rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d leases", NETWORK_LEASES_MAX);
            break;
        }
        Covey__V1__NetworkLease *lease = arena_alloc(arena, sizeof(*lease));
        if (lease_line(line, lease, arena))
            out->leases[out->n_leases++] = lease;
    }
    buf_free(&text);
    free(path);
    return rc;
}
