/* A tiny HTTP server without libraries: the whole file system of the test image.
 * GET /exit/N ends with code N, /eat fills the memory, /connect/A.B.C.D/PORT tries a connection,
 * /exists/PATH tells whether a path exists, /write and /read keep a file in the home, /env/NAME reads
 * a variable, /id tells user and group. With IGNORE_TERM set it stays through SIGTERM. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *try_connect(const char *host, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), error = 0;
    socklen_t size = sizeof error;
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) {
        close(fd);
        return "refused";
    }
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    if (poll(&wait, 1, 1500) == 0) {
        close(fd);
        return "silent";
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    close(fd);
    return error ? "refused" : "connected";
}

static void answer(int client, const char *path) {
    static char text[4096];
    char host[64], name[256];
    int number;
    snprintf(text, sizeof text, "hello");
    if (sscanf(path, "/exit/%d", &number) == 1) {
        printf("told to exit with %d\n", number);
        fflush(stdout);
        _exit(number);
    }
    if (strcmp(path, "/eat") == 0) {
        for (;;) {
            char *block = malloc(1 << 20);
            if (block) memset(block, 1, 1 << 20);
        }
    }
    if (sscanf(path, "/connect/%63[0-9.]/%d", host, &number) == 2)
        snprintf(text, sizeof text, "%s", try_connect(host, number));
    else if (sscanf(path, "/exists%255s", name) == 1)
        snprintf(text, sizeof text, "%s", access(name, F_OK) == 0 ? "yes" : "no");
    else if (strcmp(path, "/write") == 0) {
        int fd = open("/home/jovyan/kept.txt", O_CREAT | O_WRONLY | O_TRUNC, 0600);
        snprintf(text, sizeof text, "%s", fd >= 0 && write(fd, "kept", 4) == 4 ? "written" : strerror(errno));
        if (fd >= 0) close(fd);
    } else if (strcmp(path, "/read") == 0) {
        int fd = open("/home/jovyan/kept.txt", O_RDONLY);
        ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
        if (got >= 0) text[got] = 0; else snprintf(text, sizeof text, "%s", strerror(errno));
        if (fd >= 0) close(fd);
    } else if (sscanf(path, "/env/%255s", name) == 1)
        snprintf(text, sizeof text, "%s", getenv(name) ? getenv(name) : "(unset)");
    else if (strcmp(path, "/id") == 0)
        snprintf(text, sizeof text, "%d:%d", getuid(), getgid());
    dprintf(client, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s", strlen(text), text);
}

int main(void) {
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8888)};
    if (getenv("IGNORE_TERM")) signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&here, sizeof here) < 0 || listen(server, 16) < 0) return 70;
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        char request[2048] = {0}, path[1024] = {0};
        int client = accept(server, NULL, NULL);
        if (client < 0) continue;
        if (read(client, request, sizeof request - 1) > 0 && sscanf(request, "GET %1023s", path) == 1)
            answer(client, path);
        close(client);
    }
}
